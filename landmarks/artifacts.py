"""Where every artefact of the pipeline is, and how it is read.

Paths are relative to the repository's root, where DVC runs the stages. docs/architecture.md lists the columns, writer
and readers of each file. landmarks/images.py reads pictures.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DOWNLOADED = Path("data/downloaded")
FILTERED = Path("data/filtered")
SPLIT = Path("data/split.parquet")
VIEWS = Path("data/augment.parquet")
BACKBONE = Path("models/backbone.safetensors")
MODELS = Path("models/trained")
FEATURES = Path("data/features/features.npy")
TRUNK = Path("data/features/trunk.safetensors")
SIMILAR = Path("data/similar.parquet")
LOGS = Path("metrics/train")
REPEATS = Path("metrics/repeats")
ANSWERS = "answers.parquet"  # in each LOGS/NAME and REPEATS/NAME/SEED
PREDICTIONS = Path("data/predictions.parquet")
RESULTS = Path("metrics/results.json")
CLASSES = Path("metrics/classes.csv")
WRONG = Path("metrics/wrong.csv")
INSPECTION = Path("metrics/inspection")
PLOTS = Path("plots")
REPORT = Path("report.html")
RELEASED = Path("models/released")
DOWNLOADS = Path(".scratch/download")  # what the download stage has fetched; not an output

# What models are trained from.
TRAINING = (FEATURES, VIEWS, SPLIT, FILTERED / "classes.csv", BACKBONE)

# DVC deletes and writes these, or what is in them.
OUTS = (
    *(DOWNLOADED, FILTERED, SPLIT, VIEWS, BACKBONE, FEATURES.parent, SIMILAR, MODELS, LOGS),
    *(REPEATS, PREDICTIONS, RESULTS, RESULTS.with_suffix(".md"), CLASSES, WRONG, INSPECTION, RELEASED, PLOTS),
    REPORT,
)

DIGITS = 6  # decimals of metrics and confidences in files; more would only show the last bits of float32
# Columns of CSV files that stay text, even if they look like numbers.
TEXT = dict.fromkeys(
    [
        *("id", "landmark_id", "name", "confused_with", "reason", "given", "predicted", "suggested"),
        *("other_id", "other_landmark_id"),
    ],
    str,
)


def overlapping_out(path: str, root: Path = Path()) -> Path | None:
    """The out of the repository `root` that contains `path` or lies in it, or None.

    `path` is relative to `root`. Links and letter case do not hide an overlap.
    """

    def within(inner: str, outer: str) -> bool:
        return any(
            str(part) == outer or (os.path.exists(part) and os.path.exists(outer) and os.path.samefile(part, outer))
            for part in (Path(inner), *Path(inner).parents)
        )

    try:
        real = os.path.realpath(root / path)
    except ValueError:  # a null byte
        return None
    made = {out: os.path.realpath(root / out) for out in OUTS}
    return next((out for out in OUTS if within(real, made[out]) or within(made[out], real)), None)


def read_csv(path: Path) -> "pd.DataFrame":
    """A CSV file whose ids and names stay text: an id may be 007, a name NA."""
    import pandas as pd

    return pd.read_csv(path, dtype=TEXT, keep_default_na=False)


def read_classes() -> "pd.DataFrame":
    """The kept classes in the order of their labels: `label` (0, 1...), `landmark_id`, `pictures`."""
    return read_csv(FILTERED / "classes.csv")


def read_named_classes() -> "pd.DataFrame":
    """The kept classes in the order of their labels: `label`, `landmark_id`, `name` (empty if unknown)."""
    names = read_csv(DOWNLOADED / "names.csv")
    return read_classes()[["label", "landmark_id"]].merge(names, on="landmark_id", how="left", validate="one_to_one")


def shown_names(classes: "pd.DataFrame") -> dict[str, str]:
    """By landmark_id, the name of each class (`landmark_id`, `name`), or the landmark_id if it has none."""
    return {key: name or key for key, name in zip(classes["landmark_id"], classes["name"], strict=True)}


def read_views(root: Path = Path()) -> "pd.DataFrame":
    """The augmentation index with a column `row`: which row of features.npy belongs to the view."""
    import pandas as pd

    index = pd.read_parquet(root / VIEWS)
    return index.assign(row=range(len(index)))


def read_results(root: Path = Path()) -> dict:
    """results.json."""
    return json.loads((root / RESULTS).read_text(encoding="utf-8"))


def read_labelled_views(root: Path = Path()) -> "pd.DataFrame":
    """`read_views` with the `label` and the `split` of each view's picture."""
    import pandas as pd

    split = pd.read_parquet(root / SPLIT, columns=["id", "label", "split"])
    return read_views(root).merge(split, on="id", how="left")


def read_features(root: Path = Path()) -> "np.ndarray":
    """The features of all views, float16 [row, channels, height, width], mapped into memory.

    Raises `OSError` if the file is truncated.
    """
    import numpy as np

    try:
        return np.load(root / FEATURES, mmap_mode="r")
    except ValueError:
        raise OSError(f"{root / FEATURES}: ends too early; run `dvc checkout`") from None
