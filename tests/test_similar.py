"""Similar pictures: a training picture is at distance 0 from itself; nothing is included that was not asked for."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

from landmarks import artifacts, images, similar
from landmarks.images import Picture
from landmarks.serving import cli
from landmarks.serving.recognizer import Recognizer
from stages import similar as stage

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import LITE, VGG, abn, default_values, drawing, jpeg, model_folder, tailed, user_error

PHOTOS = {f"{'ab'[n % 2]}/{n}.jpg": jpeg(drawing(n, 100 + 60 * n, 120)) for n in range(7)}
HELD = "a/6.jpg"  # a test picture


SLOW = {"timm": LITE, "tail": tailed(VGG)}


@pytest.fixture(
    scope="module",
    params=[VGG, *(pytest.param(base, id=name, marks=pytest.mark.slow) for name, base in SLOW.items())],
)
def released(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A model folder with thumbnails, in a directory with the artefacts that the stage reads.

    Photographs are shrunk to 96 pixels.
    """
    root = tmp_path_factory.mktemp("project")
    folder = model_folder(root / artifacts.RELEASED / "abn", abn(), base=request.param)
    facts = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    facts["preprocessing"]["short_side"] = 96
    (folder / "release.json").write_text(json.dumps(facts), encoding="utf-8")
    shrunk = [images.shrink(Picture(name, "b-2", data), 96)[0] for name, data in sorted(PHOTOS.items())]
    images.write_shards(root / artifacts.FILTERED, shrunk, len(shrunk))
    splits = ["test" if name == HELD else "train" for name in sorted(PHOTOS)]
    pd.DataFrame({"id": sorted(PHOTOS), "split": splits}).to_parquet(root / artifacts.SPLIT)
    (root / artifacts.TRUNK).parent.mkdir()
    shutil.copyfile(folder / "backbone.safetensors", root / artifacts.TRUNK)
    with chdir(root):
        run(folder, "pictures")
    shutil.copyfile(root / artifacts.SIMILAR, folder / similar.FILE)
    return folder


def run(released: Path, include: str) -> None:
    """Runs the stage in the current directory."""
    values = default_values()
    values["augment"]["crop"] = 64
    values["backbone"] = json.loads((released / "release.json").read_text(encoding="utf-8"))["backbone"]
    values["package"]["similar"] = include
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    stage.main()


def test_a_training_picture_is_at_distance_0_from_itself(released: Path) -> None:
    recognizer = Recognizer(released, "cpu")
    answers = recognizer.answer([recognizer.view(data) for data in PHOTOS.values()])
    for name, answer in zip(PHOTOS, answers, strict=True):
        near = recognizer.gallery.nearest(answer.vector, 99)
        assert sorted(other.id for other in near) == sorted(set(PHOTOS) - {HELD})
        distances = [other.distance for other in near]
        assert distances == sorted(distances) and 0.1 < distances[-1] <= 2
        if name == HELD:
            assert distances[0] > 0.01
        else:
            assert near[0].id == name and distances[0] < 0.001 and distances[1] > 0.01
        assert (near[0].landmark_id, near[0].name) == ("b-2", "Bridge")
        assert images.open_image(near[0].thumbnail).format == "JPEG"
    assert recognizer.gallery.nearest(answer.vector, 2) == near[:2]


def test_a_thumbnail_has_at_most_192_pixels_a_side() -> None:
    assert images.decode(images.thumbnail(drawing(0, 480, 300))).size == (192, 120)
    assert images.open_image(images.thumbnail(drawing(0, 90, 40))).size == (90, 40)


@pytest.mark.parametrize("include", ["none", "ids"])
def test_nothing_is_included_that_was_not_asked_for(released: Path, include: str) -> None:
    before = pq.read_table(released / similar.FILE)
    with chdir(released.parents[2]):
        run(released, include)
    table = pq.read_table(released.parents[2] / artifacts.SIMILAR)
    if include == "none":
        assert len(table) == 0
    else:
        assert table["thumbnail"].null_count == len(table) == len(PHOTOS) - 1
        assert table.drop(["thumbnail"]) == before.drop(["thumbnail"])


def test_vectors_are_exact_means() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 7, 7)).astype(np.float16)
    assert (similar.pool(features) == features.astype(float).mean((2, 3)).astype(np.float16)).all()
    assert similar.pool(features).dtype == np.float16


def test_equal_pictures_are_in_the_order_of_their_ids_and_a_constant_channel_does_not_matter(tmp_path: Path) -> None:
    vectors = np.array([[1, 0, 5], [0, 1, 5], [1, 0, 5], [0, 0, 5]], dtype=np.float16)
    with similar.writer(tmp_path / similar.FILE) as write:
        write([similar.Row(f"id-{n}", "x", vector, None) for n, vector in enumerate(vectors)])
    gallery = similar.Gallery(tmp_path / similar.FILE, {"x": ""})
    near = gallery.nearest(vectors[0], 3)
    assert [(other.id, other.distance) for other in near[:2]] == [("id-0", 0), ("id-2", 0)]
    assert near[2].distance > 0.5 and near[2].thumbnail is None


def test_the_command(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTOS["b/1.jpg"])
    (tmp_path / "text.jpg").write_text("no picture")
    command = ["predict", str(tmp_path), "--model", str(released), "--similar", "2"]
    assert cli.main([*command, "--top", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "similar training pictures" in lines[2]
    assert lines[3].split() == ["1", "0.000", "b-2", "Bridge", "b/1.jpg"]
    assert cli.main([*command, "--json"]) == 1
    photo, text = map(json.loads, capsys.readouterr().out.splitlines())
    assert "error" in text and "similar" not in text
    assert photo["similar"][0] == {"id": "b/1.jpg", "landmark_id": "b-2", "name": "Bridge", "distance": 0}
    assert len(photo["similar"]) == 2


def test_a_folder_without_training_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(tmp_path / "m")
    assert cli.main(["predict", "x.jpg", "--model", str(folder), "--similar", "5"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "m has no training pictures; set package.similar to ids or pictures, and run `dvc repro`" in err
    (folder / similar.FILE).write_bytes(b"PAR1")
    with user_error("m: a file of the model is missing or broken"):
        _ = Recognizer(folder, "cpu").gallery
