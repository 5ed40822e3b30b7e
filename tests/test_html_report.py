"""report.html: what it says, that nothing of the user leaks or runs, and how it looks in Debian's Chromium."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks import artifacts, html_report, images, params
from stages import report

import pandas as pd
import pytest
import yaml
from conftest import default_values, drawing, pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAME = '<script>alert("&")</script>' + "x" * 60
COUNTS = {"suspects": 1, "duplicates": 1, "across_classes": 0, "across_splits": 0}
RUNS = {"seeds": 3.0, "each": [0.5, 0.6, 0.7], "mean": 0.6, "std": 0.1}
GAINED = {"above_baseline": 0.25, "above_baseline_ci95": [0.125, 0.375]}


def entry(accuracy: float, **more: dict) -> dict:
    """An entry of results.json, without what the page does not show."""
    names = ("top5", "macro_recall", "gap", "ece", "perception_accuracy", "attention_accuracy")
    return {"accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], **GAINED, **dict.fromkeys(names, 0.5), **more}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stage reads, for 40 pictures of four landmarks with mistakes of every kind; the working directory."""
    monkeypatch.chdir(tmp_path)
    shown = pictures(40)
    shown[0] = shown[0]._replace(author="A. <b>Author</b>", license="CC BY 2.0")
    images.write_shards(artifacts.FILTERED, shown, len(shown))
    ids = [picture.id for picture in shown]
    landmarks = [f"landmark-{k}" for k in range(4)]
    names = pd.DataFrame({"landmark_id": landmarks, "name": [NAME, "", "", ""]})
    write(artifacts.DOWNLOADED / "names.csv", names.to_csv(index=False))
    rows = "".join(f"{k},landmark-{k},10\n" for k in range(4))
    write(artifacts.FILTERED / "classes.csv", "label,landmark_id,pictures\n" + rows)
    ranking = "1,landmark-0,12,True\n2,landmark-9,9,False\n3,Tower <1>,1200,False\n"
    write(artifacts.FILTERED / "ranking.csv", "rank,landmark_id,images,kept\n" + ranking)
    write(artifacts.FILTERED / "dropped.csv", "id,landmark_id,reason\na,landmark-0,broken\nb,landmark-0,broken\n")
    rows = "landmark-0,,6,2,2,,0.0,landmark-1\n" + "".join(f"landmark-{k},,6,2,2,1.0,0.5,\n" for k in (1, 2, 3))
    write(artifacts.CLASSES, "landmark_id,name,train,val,test,precision,recall,confused_with\n" + rows)
    rows = "".join(f"{name},test,landmark-0,landmark-1,0.9,2\n" for name in ids[:30])
    write(artifacts.WRONG, "id,split,given,predicted,confidence,rank\n" + rows)
    write(
        artifacts.INSPECTION / "suspects.csv",
        f"id,split,given,suggested,score\n{ids[1]},train,landmark-1,landmark-0,0.001\n{ids[2]},val,landmark-2,landmark-1,0.5\n",
    )
    columns = "id,other_id,bits,landmark_id,other_landmark_id,split,other_split\n"
    write(artifacts.INSPECTION / "duplicates.csv", f"{columns}{ids[4]},{ids[8]},2,landmark-0,landmark-0,train,train\n")
    write(artifacts.INSPECTION / "counts.json", json.dumps(COUNTS))
    curve = "share,pictures,accuracy,low,high,trend\n1.0,24,0.8,0.7,0.9,0.8\n2.0,48,,0.8,0.95,0.85\n"
    write(artifacts.INSPECTION / "learning_curve.csv", curve)
    results = {"baseline": entry(0.5), "abn": entry(0.75), "a-study": entry(0.25)}
    results = {name: {"val": values, "test": values} for name, values in results.items()}
    write(artifacts.RESULTS, json.dumps({"majority_class": 0.25, **results}))
    right = pd.DataFrame(
        {"model": "abn", "split": "val", "id": ids[12:16], "label": range(4), "predicted": range(4), "confidence": 0.9}
    )
    test = pd.DataFrame({"split": "test", "id": ids[16:24], "label": [0, 1, 2, 3] * 2, "confidence": 0.5})
    models = [test.assign(model="baseline", predicted=-1), test.assign(model="abn", predicted=test["label"])]
    pd.concat([right, *models]).to_parquet(artifacts.PREDICTIONS)
    artifacts.PLOTS.mkdir()
    for path in (*report.DRAWINGS, artifacts.PLOTS / "attention.png"):
        drawing(1, 300, 125).save(path)
    values = default_values()
    values["data"] |= {"source": "folder", "root": "/home/ann/My pictures/", "only": "/home/ann/ids.txt"}
    values["backbone"]["weights"] = "/home/ann/mine.safetensors"
    write(Path("params.yaml"), yaml.safe_dump(values))
    write(
        Path("requirements.txt"),
        "# All.\n\nnumpy==2.4.6  # arrays\ntorch==1; sys_platform == 'linux'\ntorch==0; sys_platform == 'none'\n"
        "\n# Tests\npytest==9\n",
    )
    return tmp_path


def page() -> str:
    """Runs the stage; returns the page."""
    summary = report.main()
    assert re.fullmatch(r"report\.html, \d+\.\d MB", summary)
    return artifacts.REPORT.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The text of a page, in one line, its pictures, and its elements by name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[dict] = []
        self.elements: set[str] = set()
        self.feed(re.sub("<style>.*?</style>", "", html, flags=re.DOTALL))
        self.text = " ".join(" ".join(self.words).split())  # also without no-break spaces

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_has_every_section(folder: Path) -> None:
    read = Reader(page())
    for text in (
        "Report: My pictures",
        "75.0 % of the test pictures are named right by the best model, abn (95 % interval: 10.0 % to 90.0 %)",
        "40 pictures 4 classes 1 may have a wrong label",
        "Next: Check 1 label that may be wrong.",
        "training 24 pictures",
        "not usable: broken 2 files left out 2 other classes",
        "also unusable ones: landmark-9 (9), Tower <1> (1,200).",
        "abn is 25.0 points above the baseline, and this is more than chance",
        "+25.00",
        f"{NAME} 0.0 % never named 2 6 landmark-1",
        "Here are the first 24 of 30",
        "18 more",
        f"is {NAME} id-0000 (test)",
        "by A. <b>Author</b>, CC BY 2.0",
        "score of the label: 0.001",
        "1 pair of pictures that are nearly the same. The labels agree in all of them.",
        "data.root My pictures",
        "backbone.weights mine.safetensors",
        "split.given keep",
        "train.repeats 1",
        "numpy==2.4.6 torch==1",
    ):
        assert text in read.text, text
    assert len(read.images) == len(report.DRAWINGS) + 1 + 2 * (24 + 1 + 1)
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in read.images)


def test_nothing_of_the_user_leaks_or_runs_and_the_bytes_repeat(folder: Path) -> None:
    html = page()
    assert not {"script", "iframe", "object"} & Reader(html).elements
    plain = re.sub('base64,[^"]+', "", html)
    assert [text for text in ("/home", "ann", str(folder), "http:", "https:", "pytest") if text in plain] == []
    assert artifacts.REPORT.stat().st_size < 1e6
    assert page() == html


def test_data_without_mistakes_and_with_repeats(folder: Path) -> None:
    for path in (artifacts.WRONG, artifacts.INSPECTION / "duplicates.csv", artifacts.FILTERED / "dropped.csv"):
        write(path, path.read_text(encoding="utf-8").splitlines()[0] + "\n")
    write(artifacts.INSPECTION / "counts.json", json.dumps(dict.fromkeys(COUNTS, 0)))
    ranking = artifacts.FILTERED / "ranking.csv"
    write(ranking, ranking.read_text(encoding="utf-8").replace("False", "True"))
    suspects = artifacts.INSPECTION / "suspects.csv"
    write(suspects, suspects.read_text(encoding="utf-8").replace("0.001", "0.1"))
    results = json.loads(artifacts.RESULTS.read_text(encoding="utf-8"))
    for name in ("baseline", "abn", "a-study"):
        for values in results[name].values():
            values["repeats"] = RUNS | {"above_baseline": -0.01, "above_baseline_ci95": [-0.05, 0.03]}
    write(artifacts.RESULTS, json.dumps(results))
    read = Reader(page())
    assert "60.00 ± 10.00" in read.text and "50.00, 60.00, 70.00" in read.text
    assert "abn is 1.0 points below the baseline, and this may be chance" in read.text
    assert read.text.count(" None: ") == 3 and "Here are" not in read.text
    assert "not usable" not in read.text and "left out" not in read.text
    assert "Next: Add pictures. Twice as many would give a simple classifier 5.0 points more." in read.text
    assert len(read.images) == len(report.DRAWINGS) + 1


def test_a_difference_in_few_answers_may_be_chance(folder: Path) -> None:
    """Four answers out of four, by an exact sign test; eight are enough. The bootstrap finds both certain."""
    assert "abn is 25.0 points above the baseline, and this is more than chance" in Reader(page()).text
    predictions = pd.read_parquet(artifacts.PREDICTIONS)
    predictions.groupby(["model", "split"]).head(4).to_parquet(artifacts.PREDICTIONS)
    assert "and this may be chance, because few answers differ" in Reader(page()).text


def test_near_duplicates_across_splits_and_more_mistakes_than_the_tables_have(folder: Path) -> None:
    counts = {"suspects": 0, "duplicates": 20_000, "across_classes": 0, "across_splits": 11_000}
    write(artifacts.INSPECTION / "counts.json", json.dumps(counts))
    read = Reader(page())
    assert "20,000 pairs of pictures that are nearly the same. The labels agree in all of them." in read.text
    assert "In different splits, which makes the test easier: 11,000 pairs;" in read.text
    assert "Next: Keep near-duplicates in one split. In different splits: 11,000 pairs." in read.text


def test_a_class_that_is_never_named_right_keeps_its_captions(folder: Path) -> None:
    """It has no typical picture to compare with, but the answer about the other picture is still there."""
    right = pd.read_parquet(artifacts.PREDICTIONS)
    right[right["label"] > 1].to_parquet(artifacts.PREDICTIONS)
    read = Reader(page())
    assert len(read.images) == len(report.DRAWINGS) + 1 + 24 + 1 + 2
    assert read.text.count("confidence 90.0 %; the right name has rank 2") == 24
    assert "score of the label: 0.001" in read.text


@pytest.mark.parametrize(
    ("suspects", "across_classes", "across_splits", "twice", "wrong", "section"),
    [
        (2, 1, 1, 0.9, 1, "duplicates"),
        (2, 0, 1, 0.9, 1, "suspects"),
        (0, 0, 1, 0.9, 1, "duplicates"),
        (2, 0, 0, 0.9, 1, "suspects"),
        (0, 0, 0, 0.9, 1, "learning-curve"),
        (0, 0, 0, 0.801, 1, "wrong"),
        (0, 0, 0, 0.8, 0, "results"),
    ],
)
def test_what_to_do_next(
    suspects: int, across_classes: int, across_splits: int, twice: float, wrong: int, section: str
) -> None:
    curve = pd.DataFrame({"trend": [0.7, 0.8, twice]})
    counts = {"suspects": suspects, "across_classes": across_classes, "across_splits": across_splits}
    assert html_report.advice(counts, curve, wrong).section == section


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        (None, None),
        ("/home/ann/towers", "towers"),
        ("towers/", "towers"),
        ("/my/#1 towers", "#1 towers"),
        ("s3://bucket/ann/towers", "towers"),
        ("https://ann:secret@host/", "host"),
        ("https://host/towers?token=secret", "towers"),
        ("/", None),
    ],
)
def test_only_the_last_part_of_a_path_is_shown(root: str | None, shown: str | None) -> None:
    data = params.Data(source="folder", root=root, only=root, version=None).portable
    assert data.root == data.only == shown


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(folder: Path, browser: "Browser", width: int, scheme: str) -> None:
    """Everything is visible without another request, a message in the console or scrolling sideways."""
    page()
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests, messages = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: messages.append(message.text))
    tab.goto(artifacts.REPORT.resolve().as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    tab.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert [url for url in requests if not url.startswith("data:")] == [artifacts.REPORT.resolve().as_uri()]
    assert messages == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.get_by_role("link", name="Show").click()
    assert tab.evaluate("location.hash") == "#suspects"
    tab.close()
