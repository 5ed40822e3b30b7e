"""package: one self-contained folder per trained model, ready to be used elsewhere (see landmarks/release.py).

The threshold for unknown landmarks is chosen on validation pictures alone.
"""

import shutil

from landmarks import artifacts, images, params, release, similar, stage

import numpy as np
import pandas as pd

EXAMPLES = 6  # pictures


def examples(test: pd.DataFrame, landmarks: list[str]) -> dict[str, bytes]:
    """A test picture each of some landmarks, evenly spread, by file name. `test` has the pictures' id and label."""
    firsts = test.sort_values(["label", "id"]).drop_duplicates("label")
    chosen = firsts.iloc[np.linspace(0, len(firsts) - 1, min(EXAMPLES, len(firsts))).astype(int)]
    names = {row.id: f"{landmarks[row.label]}.jpg" for row in chosen.itertuples()}
    return {names[picture.id]: picture.picture for picture in images.read_pictures(artifacts.FILTERED, names)}


def main() -> str:
    p = params.load()
    classes, known = artifacts.read_classes(), artifacts.read_named_classes()
    predictions = pd.read_parquet(artifacts.PREDICTIONS)
    results = artifacts.read_results()
    astride = pd.read_parquet(artifacts.SPLIT).groupby("group")["split"].nunique() > 1
    together = p.split.group_near_duplicates and not astride.any()
    blocks = {"filter": p.filter, "split": p.split, "augment": p.augment, "backbone": p.backbone.portable}
    settings = {
        "seed": p.seed,
        "data": {"source": p.data.source},  # not the root, which is a path on one machine
        "compute": {"precision": p.compute.precision},
        **{name: block.model_dump(mode="json") for name, block in (blocks | {"train": p.train}).items()},
    }
    shown, compared = None, len(pd.read_parquet(artifacts.SIMILAR, columns=["id"]))
    with stage.atomic_output(artifacts.RELEASED) as out:
        for name, abn in p.models.items():
            answers = {split: rows for split, rows in predictions[predictions["model"] == name].groupby("split")}
            confidence = {split: rows["confidence"].to_numpy() for split, rows in answers.items()}
            sizes = {split: len(rows) for split, rows in answers.items()}
            sizes["train"] = int(classes["pictures"].sum()) - sum(sizes.values())
            unknown = release.calibrate_rejection(confidence["val"], confidence["test"], p.package.false_alarm_rate)
            content = release.facts(
                name, settings | {"abn": abn and abn.model_dump(mode="json")}, unknown, results[name]
            )
            folder = out / name
            shutil.copytree(artifacts.MODELS / name, folder, copy_function=shutil.copyfile)
            shutil.copyfile(artifacts.TRUNK, folder / "backbone.safetensors")
            known.to_csv(folder / "classes.csv", index=False, lineterminator="\n")
            if compared:
                shutil.copyfile(artifacts.SIMILAR, folder / similar.FILE)
            release.write(folder, content, release.card(content, len(classes), sizes, together))
            if p.data.source == "sample":  # other sources' pictures may not be passed on
                shown = shown or examples(answers["test"], classes["landmark_id"].tolist())
                (folder / "examples").mkdir()
                for file, data in shown.items():
                    (folder / "examples" / file).write_bytes(data)
    return f"{', '.join(p.models)} in {artifacts.RELEASED}/"


if __name__ == "__main__":
    stage.run(main)
