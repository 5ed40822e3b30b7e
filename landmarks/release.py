"""The release: one self-contained folder per trained model, which is all that the model needs to be used.

A folder has
    model.safetensors, design.json   the head, as landmarks/models.py writes it
    backbone.safetensors             the trunk up to the layer that the head reads, with the mean and std of its input
    classes.csv                      label, landmark_id, name (empty where none is known)
    release.json                     how to prepare a picture, the threshold, the parameters, the results
    README.md                        the model card
    examples/                        a few test pictures, where they are ours to give (the sample's)
"""

import json
import math
import textwrap
from pathlib import Path

from landmarks import augment, weights
from landmarks.artifacts import DIGITS
from landmarks.stage import UserError

import numpy as np

FORMAT = 2  # of release.json; another number is another layout


def threshold(confidence: np.ndarray, rate: float) -> float:
    """The confidence below which a picture is called none of the known landmarks.

    `confidence` [N] is of validation pictures, which all show a known landmark. To call one of those unknown is a false
    alarm, and its probability for a new picture like them is at most `rate`: of N + 1 pictures that are exchangeable,
    the new one is below the j-th smallest of the others with probability at most j / (N + 1) (split conformal
    prediction: Angelopoulos & Bates, arXiv 2107.07511, sec. 1). Without pictures enough for the rate it is 0: no alarm.
    """
    rank = math.floor(rate * (len(confidence) + 1) + 1e-9)
    return round(float(np.sort(confidence)[rank - 1]), DIGITS) if rank else 0.0


def calibrate_rejection(val: np.ndarray, test: np.ndarray, rate: float) -> dict:
    """The threshold for a stated rate of false alarms, and what it does on pictures that did not choose it.

    `val` and `test` are confidences of pictures of known landmarks.
    """
    from scipy.stats import binomtest  # slow to import, and whoever uses a model does without

    value = threshold(val, rate)
    alarms = int((test < value).sum())
    interval = binomtest(alarms, len(test)).proportion_ci(0.95, method="wilson")  # good for few, and near 0
    return {
        "threshold": value,
        "false_alarm_rate": rate,
        "validation": {"pictures": len(val), "alarms": int((val < value).sum())},
        "test": {"pictures": len(test), "alarms": alarms, "rate_ci95": [round(end, DIGITS) for end in interval]},
    }


def facts(name: str, settings: dict, unknown: dict, results: dict) -> dict:
    """release.json of the model called `name`, made with the `settings` (blocks of params.yaml; `abn` is its own or
    None). `results` is its row of results.json."""
    return {
        "format": FORMAT,
        "name": name,
        "backbone": settings["backbone"],
        "preprocessing": {
            "short_side": settings["filter"]["short_side"],
            "centre_scale": augment.CENTRE_SCALE,
            "crop": settings["augment"]["crop"],
        },
        "unknown": unknown,
        "params": settings,
        "results": results,
    }


def write(folder: Path, content: dict, card: str) -> None:
    """Writes release.json and README.md."""
    (folder / "release.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def read(folder: Path) -> dict:
    """release.json of a folder. Raises `UserError` if that is no model folder, or one of another layout."""
    path = folder / "release.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not there, or broken; `make reproduce` makes model folders in release/") from None
    if found != FORMAT:
        raise UserError(f"{path}: format {found}, this code reads {FORMAT}; use the code that it was made with")
    return content


def card(content: dict, classes: int, sizes: dict[str, int]) -> str:
    """The model card, Markdown, of release.json and of a model of so many classes; `sizes` is pictures by split."""
    name, p, test, val = content["name"], content["params"], content["results"]["test"], content["results"]["val"]
    train, abn, backbone, prepared = p["train"], p["abn"], content["backbone"], content["preprocessing"]
    unknown, turned = content["unknown"], p["augment"]["eval_rotation"]
    tried, rate = unknown["test"], unknown["false_alarm_rate"]
    surer = " Those were rotated; upright ones are mostly surer." if turned else ""
    synthetic = p["data"]["source"] == "sample"

    def percent(*values: float) -> str:
        return " to ".join(f"{100 * value:.2f} %" for value in values)

    kind = "An Attention Branch Network (arXiv 1812.10025)" if abn else "VGG-16's classifier"
    drawn = (
        "**Synthetic pictures**, which the pipeline draws itself: the model knows no real place, and its results say "
        "nothing of photographs."
    )
    others = f"Pictures of `data.source: {p['data']['source']}`."
    grouped = p["split"]["group_near_duplicates"]
    metrics = [("accuracy", "accuracy"), ("top5", "among the best five"), ("macro_recall", "mean recall of classes")]
    paragraphs = [
        f"# {name}",
        f"{kind} for {classes} landmarks, on `{backbone['name']}` with the weights `{backbone['weights']}`, frozen up "
        f"to `{backbone['layer']}`{' and trained from there on' if backbone['tail'] == 'trained' else ''}.",
        f"    python -m landmarks predict PHOTO --model {name}",
        "needs this folder and the code, and nothing else. For other programs: "
        f"`python -m landmarks export --onnx --model {name}`.",
        "## Data",
        f"{drawn if synthetic else others} {sizes['train']} to train on, "
        f"{sizes['val']} for validation, {sizes['test']} for the test; near-duplicates were "
        f"{'kept on one side' if grouped else 'not kept on one side, so that results flatter'}.",
        "## Training",
        f"{train['epochs']} epochs of {train['optimizer']}, rate {train['learning_rate']:g}, batches of "
        f"{train['batch_size']}, classifier of {train['hidden']} hidden units with dropout {train['dropout']:g}, seed "
        f"{p['seed']}, {', '.join(f'{key} {value}' for key, value in abn.items()) if abn else 'no attention'}. "
        "`release.json` has all parameters.",
        "## Input",
        f"The photo, upright and RGB, shrunk to a short side of {prepared['short_side']} pixels if it is larger; of "
        f"that the square in the centre, {prepared['centre_scale']:g} of the short side, resized to "
        f"{prepared['crop']} x {prepared['crop']} pixels.",
        "## Results",
        f"Of each picture its centre, {f'rotated by up to {turned:g} degrees' if turned else 'upright'}. The 95 % "
        f"interval of the test accuracy is {percent(*test['accuracy_ci95'])}.",
        "| | validation | test |\n|---|---:|---:|\n"
        + "\n".join(f"| {title} | {percent(val[key])} | {percent(test[key])} |" for key, title in metrics),
        "## None of the known landmarks",
        f"A photo whose best confidence is below {unknown['threshold']:g} is called none of the known landmarks. The "
        f"threshold was chosen on {unknown['validation']['pictures']} validation pictures, all of known landmarks, so "
        f"that a new one like them is called so by mistake with a probability of at most {percent(rate)}.{surer} It "
        f"happened to {tried['alarms']} of {tried['pictures']} test pictures, which had no say in it (95 % interval of "
        f"the rate: {percent(*tried['rate_ci95'])}). How often a photo of something else is called so is not promised, "
        "and may be seldom: that depends on what it shows. `python -m studies.unknown` measures it.",
        "## Limits",
        "- It sees the centre of a photo. A landmark at its edge, or lying on its side, may be missed.\n"
        "- The recipe was chosen on validation pictures, which therefore flatter. Test pictures chose nothing.\n"
        "- It was made to compare methods. Nobody tried it for a purpose that matters.",
        "## Licences",
        f"{weights.licence(backbone['weights'], backbone['name'])} The head was trained by the pipeline, on pictures "
        f"that {'it drew' if synthetic else 'have licences of their own'}.",
    ]
    prose = [text if text[0] in "#| -" else textwrap.fill(text, 120, break_on_hyphens=False) for text in paragraphs]
    return "\n\n".join(prose) + "\n"
