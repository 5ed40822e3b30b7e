"""package: one self-contained folder per trained model, ready to be used elsewhere.

Reads   models/, data/predictions.parquet, metrics/results.json, data/filtered/ (classes, pictures),
        data/raw/names.csv.
Writes  release/NAME/ for the baseline, abn and each ablation; landmarks/release.py says what is in it.
Holds   nothing else of the pipeline is needed to use a folder; the threshold was chosen on validation pictures alone.
"""

import json
import shutil
from pathlib import Path

from landmarks import images, networks, params, release, stage

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

MODELS = Path("models")
PREDICTIONS = Path("data/predictions.parquet")
RESULTS = Path("metrics/results.json")
FILTERED = Path("data/filtered")
NAMES = Path("data/raw/names.csv")
OUT = Path("release")
EXAMPLES = 6  # pictures


def examples(test: pd.DataFrame, landmarks: list[str]) -> dict[str, bytes]:
    """A test picture each of some landmarks, evenly spread, by file name. `test` has the pictures' id and label."""
    firsts = test.sort_values(["label", "id"]).drop_duplicates("label")
    chosen = firsts.iloc[np.linspace(0, len(firsts) - 1, min(EXAMPLES, len(firsts))).astype(int)]
    names = {row.id: f"{landmarks[row.label]}.jpg" for row in chosen.itertuples()}
    pictures = (picture for group in images.read_groups(FILTERED) for picture in group)
    return {names[picture.id]: picture.picture for picture in pictures if picture.id in names}


def main() -> str:
    p = params.load()
    classes = pd.read_csv(FILTERED / "classes.csv", dtype={"landmark_id": str}, keep_default_na=False)
    names = pd.read_csv(NAMES, dtype=str, keep_default_na=False)
    known = classes[["label", "landmark_id"]].merge(names, on="landmark_id", how="left", validate="one_to_one")
    predictions = pd.read_parquet(PREDICTIONS)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    state = networks.trunk_weights(load_file(MODELS / "backbone.safetensors"), p.backbone)
    settings = {
        "seed": p.seed,
        "data": {"source": p.data.source},  # not the root, a place on one machine
        "filter": p.filter.model_dump(mode="json"),
        "split": p.split.model_dump(mode="json"),
        "augment": p.augment.model_dump(mode="json"),
        "backbone": p.backbone.portable.model_dump(mode="json"),
        "train": p.train.model_dump(mode="json"),
    }
    blocks = {"baseline": None, "abn": p.abn, **dict(sorted(p.ablations.items()))}
    shown = None
    with stage.atomic_output(OUT) as out, stage.progress(len(blocks), "models") as bar:
        for name, abn in blocks.items():
            answers = {split: rows for split, rows in predictions[predictions["model"] == name].groupby("split")}
            confidence = {split: rows["confidence"].to_numpy() for split, rows in answers.items()}
            sizes = {split: len(rows) for split, rows in answers.items()}
            sizes["train"] = int(classes["pictures"].sum()) - sum(sizes.values())
            unknown = release.calibrate_rejection(confidence["val"], confidence["test"], p.package.false_alarm_rate)
            content = release.facts(
                name, settings | {"abn": abn and abn.model_dump(mode="json")}, unknown, results[name]
            )
            folder = out / name
            shutil.copytree(MODELS / name, folder, copy_function=shutil.copyfile)
            save_file(state, folder / "backbone.safetensors")
            known.to_csv(folder / "classes.csv", index=False, lineterminator="\n")
            release.write(folder, content, release.card(content, len(classes), sizes))
            if p.data.source == "sample":  # pictures that are ours to give
                shown = shown or examples(answers["test"], classes["landmark_id"].tolist())
                (folder / "examples").mkdir()
                for file, data in shown.items():
                    (folder / "examples" / file).write_bytes(data)
            bar.update()
    return f"{', '.join(blocks)} in {OUT}/"


if __name__ == "__main__":
    stage.run(main)
