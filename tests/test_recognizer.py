"""A released model in use: it gives the pipeline's answers, for every kind of photo, in any batch, in any folder."""

import json
from pathlib import Path

from landmarks import augment, features, images, release
from landmarks.images import Picture, Unfit
from landmarks.networks import Trunk
from landmarks.params import Backbone
from landmarks.serving import recognizer
from landmarks.serving.recognizer import Recognizer

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BACKBONES, VGG, VIEWS, abn, drawing, jpeg, model_folder, tailed, user_error
from PIL import Image
from safetensors.torch import load_file

# Small and large, upright and lying, JPEG and PNG: what the filter keeps as it is, and what it shrinks.
PHOTOS = {
    "id-0.jpg": jpeg(drawing(0)),
    "id-1.jpg": jpeg(drawing(1, 700, 500)),
    "id-2.png": images.encode(drawing(2, 300, 400), "PNG"),
    "id-3.png": images.encode(drawing(3, 90, 120).convert("RGBA"), "PNG"),
    "id-4.jpg": jpeg(drawing(4, 1200, 300)),
}


@pytest.fixture(scope="module", params=[*BACKBONES, pytest.param(tailed(VGG), id="tail")])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return model_folder(tmp_path_factory.mktemp("release") / "abn", abn(), base=request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Recognizer:
    return Recognizer(folder, "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    for name, data in PHOTOS.items():
        (tmp_path / name).write_bytes(data)
    return [tmp_path / name for name in PHOTOS]


def pipeline(model: Recognizer, folder: Path, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of PHOTOS as the stages compute them: filter, augment-index, extract-features, evaluate."""
    p = model.facts["preprocessing"]
    shrunk = [images.shrink(Picture(name, "", data), p["short_side"]) for name, data in PHOTOS.items()]
    images.write_shards(directory, (picture for picture, _ in shrunk), len(shrunk))
    rows = [(picture.id, "test", image.width, image.height) for picture, image in shrunk]
    table = pd.DataFrame(rows, columns=["id", "split", "width", "height"])
    index = augment.draw(table, VIEWS, seed=0)
    trunk = Trunk(load_file(folder / "backbone.safetensors"), Backbone(**model.facts["backbone"]))
    made = np.concatenate(list(features.extract(trunk, directory, index, p["crop"])))
    with torch.inference_mode():
        output = model.model(torch.from_numpy(made).float())
    return model.model.probabilities(output).numpy(), output.map[:, 0].numpy()


@pytest.mark.slow
def test_it_gives_the_pipelines_answers(model: Recognizer, folder: Path, photos: list[Path], tmp_path: Path) -> None:
    scores, maps = pipeline(model, folder, tmp_path / "shards")
    answers = [answer for _, answer in model.recognise(photos)]
    plain = model.facts["backbone"] == VGG.model_dump()  # timm's differ more in their last bits, random tails say less
    assert np.ptp(scores, axis=0).max() > (0.01 if plain else 0.001), "answers differ from photo to photo"
    assert np.abs(scores - [answer.scores for answer in answers]).max() < (1e-6 if plain else 1e-5)
    assert np.abs(maps - [answer.map for answer in answers]).max() < 1e-5


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_batch(
    model: Recognizer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [answer.scores for _, answer in model.recognise(photos)]
    monkeypatch.setattr(recognizer, "BATCH", 2)
    apart = [answer.scores for _, answer in model.recognise(photos)]
    # At this small size, the trunk's last bits depend on the batch, and a few features are rounded to another float16.
    assert np.abs(np.subtract(together, apart)).max() < 1e-5


def test_the_box_is_the_square_that_was_seen(model: Recognizer) -> None:
    left, top, right, bottom = model.view(PHOTOS["id-1.jpg"]).box
    assert (top, bottom) == (0.0625, 0.9375)  # 0.875 of the short side
    assert left + right == pytest.approx(1, abs=0.01)
    assert (right - left) * 700 == pytest.approx((bottom - top) * 500, rel=0.01)


def test_an_unreadable_photo_gives_a_reason_and_the_others_are_answered(
    model: Recognizer, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "wide.png").write_bytes(images.encode(Image.new("1", (80_000, 300)), "PNG"))
    (tmp_path / "empty").mkdir()
    bad = [
        tmp_path / "text.jpg",
        tmp_path / "empty.jpg",
        tmp_path / "wide.png",
        tmp_path / "nowhere.jpg",
        tmp_path / "empty",
        None,
    ]
    found = list(model.recognise([photos[0], *bad, photos[1]]))
    assert [path for path, _ in found] == [photos[0], *bad, photos[1]]
    reasons = [str(answer) for _, answer in found if isinstance(answer, Unfit)]
    assert reasons == ["broken", "empty", "narrow", "no such file or directory", "has no pictures", "missing"]
    assert len(list(model.recognise([]))) == 0
    assert isinstance(next(iter(model.recognise(bad)))[1], Unfit), "a batch without any"


def test_best_and_known(model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([0.2, 0.5, 0.3])
    answer = recognizer.Answer(scores, None, (0, 0, 1, 1), np.zeros(1))
    assert [guess.landmark_id for guess in model.best(answer, 9)] == ["b-2", "c-3", "a-1"]
    assert model.best(answer, 1) == [("b-2", "Bridge", 0.5)]
    assert model.known(answer)
    monkeypatch.setattr(model, "threshold", 0.5)
    assert model.known(answer) and not model.known(answer._replace(scores=scores * 0.99))


def test_the_baseline_has_no_map(tmp_path: Path, photos: list[Path]) -> None:
    model = Recognizer(model_folder(tmp_path / "baseline"), "cpu")
    assert not model.has_map
    assert [answer.map for _, answer in model.recognise(photos[:1])] == [None]


@pytest.mark.parametrize("file", ["model.safetensors", "backbone.safetensors", "design.json", "classes.csv"])
def test_a_broken_folder_is_one_line(tmp_path: Path, file: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / file).unlink()
    with user_error("m: a file of the model is missing or broken"):
        Recognizer(folder, "cpu")
    if file != "classes.csv":
        (folder / file).write_bytes(b"{]")
        with user_error("m: a file of the model is missing or broken"):
            Recognizer(folder, "cpu")


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.webp", "d[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*arguments: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in recognizer.find(str(tmp_path / a) for a in arguments)]

    assert found("") == ["a.PNG", "b.jpg", "d[1].jpg", "sub/c.webp"]
    assert found("*.jpg") == ["b.jpg", "d[1].jpg"]
    assert found("s*", "*") == ["sub/c.webp", "a.PNG", "b.jpg", "d[1].jpg", "notes.txt", "sub/c.webp"]
    (tmp_path / "sub/gone.jpg").symlink_to("nothing.jpg")
    assert found("s*") == ["sub/c.webp", "sub/gone.jpg"], "it fails when it is read"
    (tmp_path / "sub/gone.jpg").unlink()
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir/b.jpg").touch()
    for name in ("", "**/*.*"):
        assert found(name) == ["a.PNG", "b.jpg", "d[1].jpg", *["notes.txt"] * bool(name), "sub/c.webp"]
    (tmp_path / "@eaDir/up").symlink_to("..")
    (tmp_path / "sub/again").symlink_to("..")  # with a second loop, the number of paths grows exponentially
    assert found("**/*.webp", "notes.txt", "d[1].jpg") == ["sub/c.webp", "notes.txt", "d[1].jpg"]
    assert found("**") == found("")
    (tmp_path / "broken.jpg").symlink_to("nothing.jpg")
    assert found("") == ["a.PNG", "b.jpg", "broken.jpg", "d[1].jpg", "sub/c.webp"]
    (tmp_path / "empty/folder").mkdir(parents=True)
    for name in ("none.jpg", "none*", "empty", "empty/*", "x" * 300):
        assert found(name) == [name], "it fails when it is read"
    assert list(recognizer.find([""])) == [Path()], "not all photos of the directory"
    with user_error(r"/\*\*\.jpg: \*\* must be the whole name of a folder"):
        found("**.jpg")


@pytest.mark.parametrize(("key", "value"), [("short_side", 64), ("centre_scale", 0.5), ("crop", 32)])
def test_preprocessing_is_read_from_the_folder(tmp_path: Path, key: str, value: float) -> None:
    folder, photo = model_folder(tmp_path / "m"), PHOTOS["id-1.jpg"]
    usual = Recognizer(folder, "cpu").view(photo)
    content = release.read(folder)
    content["preprocessing"][key] = value
    (folder / "release.json").write_text(json.dumps(content), encoding="utf-8")
    view = Recognizer(folder, "cpu").view(photo)
    assert not np.array_equal(view.pixels, usual.pixels)
    if key == "centre_scale":
        assert (view.box[1], view.box[3]) == (0.25, 0.75)
