"""report.html: one page that has all of its figures and pictures inside. landmarks/html_report.html is its template."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from landmarks import figures, images

import jinja2
import pandas as pd
from packaging.markers import Marker
from PIL import Image

GAIN = 0.01  # of the accuracy; for less, more pictures are not worth the work


class Thumbnail(NamedTuple):
    """A small picture: the data URI of a JPEG, and who made the original (empty if unknown)."""

    source: str
    credit: str


class Advice(NamedTuple):
    """What to do next, and the section of the page that shows why."""

    text: str
    section: str


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(path: Path) -> str:
    """A PNG file of pictures as the data URI of a JPEG, which takes a quarter of the space."""
    with Image.open(path) as image:
        return data_uri(images.encode(image.convert("RGB"), "JPEG", quality=85), "jpeg")


def thumbnails(folder: Path, ids: Iterable[str]) -> dict[str, Thumbnail]:
    """The pictures with these ids in a folder of shards, by id."""
    found = {}
    for picture in images.read_pictures(folder, ids):
        source = data_uri(images.thumbnail(images.decode(picture.picture)), "jpeg")
        found[picture.id] = Thumbnail(source, figures.attribution(picture))
    return found


def typical(predictions: pd.DataFrame, landmarks: list[str]) -> dict[str, str]:
    """By landmark, the picture that a model names right with most confidence, if there is one.

    `predictions` has its rows of predictions.parquet, and `landmarks` the landmark of each label.
    """
    right = predictions[predictions["predicted"] == predictions["label"]]
    first = right.sort_values(["confidence", "id"], ascending=[False, True]).drop_duplicates("label")
    return {landmarks[row.label]: row.id for row in first.itertuples()}


def illustrated(rows: pd.DataFrame, pictures: dict[str, Thumbnail]) -> list[dict]:
    """The rows (`id`, `other`...) with a `picture` each and, if there is one, an `other_picture` to compare."""
    return [
        row | {"picture": pictures[row["id"]], "other_picture": pictures.get(row["other"])}
        for row in rows.to_dict("records")
    ]


def comparison(test: dict, predictions: pd.DataFrame) -> str:
    """A sentence about abn's difference from the baseline. `test` is abn's entry for test pictures in results.json,
    `predictions` is predictions.parquet.

    With one seed, an exact sign test (McNemar's test) has to agree, because the bootstrap is too certain if few answers
    differ.
    """
    entry = test.get("repeats", test)
    gain, (low, high) = 100 * entry["above_baseline"], (100 * end for end in entry["above_baseline_ci95"])
    verdict = "is more than chance"
    if low <= 0 <= high:
        verdict = "may be chance"
    elif entry is test and sign_test(predictions) >= 0.05:
        verdict = "may be chance, because few answers differ"
    return (
        f"abn is {abs(gain):.1f} points {'below' if gain < 0 else 'above'} the baseline, and this {verdict} "
        f"(95 % interval of the difference: {low:.1f} to {high:.1f})."
    )


def sign_test(predictions: pd.DataFrame) -> float:
    """The p-value of an exact sign test on the test pictures that only one of the two models, abn and the baseline,
    names right: how probable a result at least as uneven is if both models are equally good."""
    from scipy.stats import binomtest  # imported here because it is slow

    rows = predictions[predictions["split"] == "test"]
    right = rows.assign(right=rows["predicted"] == rows["label"]).pivot(index="id", columns="model", values="right")
    better, worse = (right["abn"] > right["baseline"]).sum(), (right["abn"] < right["baseline"]).sum()
    return binomtest(better, better + worse).pvalue


def count(number: int, noun: str, ending: str = "s") -> str:
    """A number and its noun; `ending` is that of the plural."""
    return f"{number:,} {noun}{ending if number != 1 else ''}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def advice(counts: dict[str, int], curve: pd.DataFrame, wrong: int) -> Advice:
    """The one thing that helps most. Wrong labels come first, because they spoil training and test alike. Then come
    near-duplicates in different splits, because they make the test easier.

    The arguments are counts.json and learning_curve.csv of the inspection, and the number of misnamed pictures.
    """
    now, twice = curve["trend"].iloc[-2:]
    if pairs := counts["across_classes"]:
        text = f"Correct the labels of {count(pairs, 'pair')} of near-duplicates: same picture, other label."
        return Advice(text, "duplicates")
    if suspects := counts["suspects"]:
        return Advice(f"Check {count(suspects, 'label')} that may be wrong.", "suspects")
    if pairs := counts["across_splits"]:
        return Advice(f"Keep near-duplicates in one split. In different splits: {count(pairs, 'pair')}.", "duplicates")
    if twice - now >= GAIN:
        text = f"Add pictures. Twice as many would give a simple classifier {100 * (twice - now):.1f} points more."
        return Advice(text, "learning-curve")
    if wrong:
        return Advice(f"Look at the {count(wrong, 'misnamed picture')}: what do they have in common?", "wrong")
    return Advice("Nothing: no label looks wrong, and all answers are right.", "results")


def flat(settings: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted names, as `dvc exp run -S` takes them."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def versions(requirements: str) -> list[str]:
    """The packages in the first block of requirements.txt that are for this platform."""
    lines = [line.partition("#")[0].partition(";") for line in requirements.split("\n\n")[1].splitlines()]
    return [package.strip() for package, _, marker in lines if not marker or Marker(marker).evaluate()]


def render(**content: object) -> str:
    """The page. Every text is escaped: the name of a landmark or file may contain `<`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent}
    return environment.get_template(Path(__file__).with_suffix(".html").name).render(content)
