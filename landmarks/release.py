"""Model folders, which contain everything that using a model needs: the threshold, release.json and the model card.

docs/architecture.md lists the files of a folder.
"""

import json
import math
import textwrap
from pathlib import Path

from landmarks import augment, weights
from landmarks.artifacts import DIGITS
from landmarks.stage import UserError

import numpy as np

FORMAT = 3  # of release.json; it changes with the layout
# Of model cards: key in results.json, and title.
METRICS = {"accuracy": "accuracy", "top5": "top-5 accuracy", "macro_recall": "mean recall of the classes"}


def threshold(confidence: np.ndarray, rate: float) -> float:
    """The confidence below which a picture is called unknown, that is, none of the known landmarks.

    `confidence` [N] is that of validation pictures, all of known landmarks. To call such a picture unknown is a false
    alarm. For a new, exchangeable picture, the probability of a false alarm is at most `rate`, because its confidence
    is below the j-th smallest of the others with probability at most j / (N + 1) (split conformal prediction:
    Angelopoulos & Bates, arXiv 2107.07511, sec. 1). If there are too few pictures for the rate, the threshold is 0: no
    alarm.
    """
    rank = min(math.floor(rate * (len(confidence) + 1) + 1e-9), len(confidence))
    return round(float(np.sort(confidence)[rank - 1]), DIGITS) if rank else 0.0


def calibrate_rejection(val: np.ndarray, test: np.ndarray, rate: float) -> dict:
    """The threshold for a rate of false alarms, and its effect on test pictures, which did not choose it.

    `val` and `test` are the confidences of pictures of known landmarks.
    """
    from scipy.stats import binomtest  # slow to import, and not needed to use a model

    value = threshold(val, rate)
    alarms = int((test < value).sum())
    interval = binomtest(alarms, len(test)).proportion_ci(0.95, method="wilson")  # suits few pictures and rates near 0
    return {
        "threshold": value,
        "false_alarm_rate": rate,
        "validation": {"pictures": len(val), "alarms": int((val < value).sum())},
        "test": {"pictures": len(test), "alarms": alarms, "rate_ci95": [round(end, DIGITS) for end in interval]},
    }


def facts(name: str, settings: dict, unknown: dict, results: dict) -> dict:
    """release.json of the model called `name`. `settings` are blocks of params.yaml, with the model's own `abn` or
    None; `unknown` comes from `calibrate_rejection`; `results` is the model's row of results.json."""
    short_side, crop = settings["filter"]["short_side"], settings["augment"]["crop"]
    preprocessing = {"short_side": short_side, "centre_scale": augment.CENTRE_SCALE, "crop": crop}
    head = {"format": FORMAT, "name": name, "backbone": settings["backbone"], "preprocessing": preprocessing}
    return head | {"unknown": unknown, "params": settings, "results": results}


def write(folder: Path, content: dict, card: str) -> None:
    """Writes release.json and README.md."""
    (folder / "release.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def read(folder: Path) -> dict:
    """release.json of a folder. Raises `UserError` if it is missing or broken, or has another format."""
    path = folder / "release.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: missing or broken; `make reproduce` writes models to models/released/") from None
    if found != FORMAT:
        raise UserError(f"{path}: format {found}, this code reads {FORMAT}; use the code that it was made with")
    if missing := {"name", "backbone", "preprocessing", "unknown", "params", "results"} - content.keys():
        raise UserError(f"{path}: lacks {min(missing)}; copy the folder again")
    return content


def card(content: dict, classes: int, sizes: dict[str, int], together: bool) -> str:
    """The model card, Markdown: for the `content` of release.json, the number of classes, pictures by split, and
    whether near-duplicates always share a split."""
    name, p, test, val = content["name"], content["params"], content["results"]["test"], content["results"]["val"]
    train, abn, backbone, prepared = p["train"], p["abn"], content["backbone"], content["preprocessing"]
    unknown, rotation, source = content["unknown"], p["augment"]["eval_rotation"], p["data"]["source"]
    tried, view = unknown["test"], f"rotated by up to {rotation:g} degrees" if rotation else "upright"

    def percent(*values: float) -> str:
        return " to ".join(f"{100 * value:.2f} %" for value in values)

    classifier = "VGG-16's classifier" if train["hidden"] else "A linear classifier"
    kind = "An Attention Branch Network (arXiv 1812.10025)" if abn else classifier
    tail = " and trained from there on" if backbone["tail"] == "trained" else ""
    synthetic = "**Synthetic pictures**, drawn by the pipeline: the results do not apply to photographs of real places."
    sides = "stayed on one side" if together else "may be on both sides"
    table = ["", "| | validation | test |", "|---|---:|---:|"]
    table += [f"| {title} | {percent(val[key])} | {percent(test[key])} |" for key, title in METRICS.items()]
    sections = {  # by heading
        f"# {name}": f"{kind} for {classes} landmarks, on `{backbone['name']}` with the weights "
        f"`{backbone['weights']}`, frozen up to `{backbone['layer']}`{tail}. This folder and the code are all that "
        f"`landmarks predict PHOTO --model {name}` needs. `landmarks export --onnx --model {name}` writes the model "
        "for other programs.",
        "## Data": f"{synthetic if source == 'sample' else f'Pictures of `data.source: {source}`.'} {sizes['train']} "
        f"for training, {sizes['val']} for validation, {sizes['test']} for the test; near-duplicates {sides}.",
        "## Training": f"{train['epochs']} epochs of {train['optimizer']}, learning rate {train['learning_rate']:g}, "
        f"seed {p['seed']}, {', '.join(f'{key} {value}' for key, value in abn.items()) if abn else 'no attention'}. "
        "`release.json` has all parameters.",
        "## Input": f"The photo, upright and RGB, shrunk to a short side of {prepared['short_side']} pixels if it is "
        f"larger; of that the square in the centre, {prepared['centre_scale']:g} of the short side, resized to "
        f"{prepared['crop']} x {prepared['crop']} pixels.",
        "## Results": f"On the centre of each picture, {view}. The 95 % interval of the test accuracy is "
        f"{percent(*test['accuracy_ci95'])}.",
        "## None of the known landmarks": f"A photo with a best confidence below {unknown['threshold']:g} is called "
        f"none of the known landmarks. This threshold comes from {unknown['validation']['pictures']} validation "
        "pictures of known landmarks. A new one like them is called unknown by mistake with a probability of at most "
        f"{percent(unknown['false_alarm_rate'])}. This happened to {tried['alarms']} of {tried['pictures']} test "
        f"pictures, which did not choose the threshold (95 % interval of the rate: {percent(*tried['rate_ci95'])}). "
        "How many photos of something else are recognised as such is not guaranteed. `python -m "
        f"studies.unknown {name}{'' if source == 'sample' else ' --thirds'}` measures it.",
        "## Limits": "It sees the centre of a photo, and may miss a landmark at the edge, or one that lies on its "
        "side. If settings were chosen on the validation pictures, the validation results are too good; test pictures "
        "chose nothing."
        + (" The model was made to compare methods, and was tested for no other purpose." * (source == "sample")),
        "## Licences": f"{weights.licence(backbone['weights'], backbone['name'])} The pipeline trained the head, on "
        f"pictures that {'it drew' if source == 'sample' else 'have licences of their own'}.",
    }
    filled = {heading: textwrap.fill(text, 120, break_on_hyphens=False) for heading, text in sections.items()}
    filled["## Results"] += "\n".join(["", *table])
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in filled.items()) + "\n"
