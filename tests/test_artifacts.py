"""How artefacts are read, and which paths overlap them."""

from pathlib import Path

from landmarks import artifacts

import numpy as np
import pandas as pd
import pytest


def test_ids_and_names_stay_text(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("landmark_id,name,pictures\n007,NA,12\n1e3,,3\n", encoding="utf-8")
    table = artifacts.read_csv(tmp_path / "names.csv")
    assert table["landmark_id"].tolist() == ["007", "1e3"]
    assert table["name"].tolist() == ["NA", ""]
    assert table["pictures"].tolist() == [12, 3]


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("data/downloaded", "data/downloaded"),
        ("data/downloaded/towers", "data/downloaded"),
        ("models/trained/../released/x", "models/released"),
        ("data", "data/downloaded"),
        ("..", "data/downloaded"),
        ("link", "data/downloaded"),
        ("plots/mine", "plots"),
        ("models/backbone.safetensors", "models/backbone.safetensors"),
        ("data/mine", None),
        ("data/raw", None),
        ("models/mine", None),
        ("release", None),
        ("../elsewhere", None),
        ("https://host/data/downloaded", None),
        ("\0", None),
    ],
)
def test_a_path_that_overlaps_an_out(
    path: str, out: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/data/downloaded").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to("data/downloaded")
    assert artifacts.overlapping_out(path, tmp_path / "here") == (out and Path(out))
    monkeypatch.chdir(tmp_path / "here")
    assert artifacts.overlapping_out(path) == (out and Path(out))


def test_every_view_has_its_row_label_and_split(tmp_path: Path) -> None:
    views = pd.DataFrame({"id": ["a", "a", "b", "c"], "view": [0, 1, 0, 0]})
    split = pd.DataFrame({"id": ["c", "b", "a"], "group": 0, "label": [2, 1, 0], "split": ["test", "val", "train"]})
    for table, path in ((views, artifacts.VIEWS), (split, artifacts.SPLIT)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        table.to_parquet(tmp_path / path, index=False)
    expected = views.assign(row=np.arange(4), label=[0, 0, 1, 2], split=["train", "train", "val", "test"])
    pd.testing.assert_frame_equal(artifacts.read_labelled_views(tmp_path), expected)
    pd.testing.assert_frame_equal(artifacts.read_views(tmp_path), expected[["id", "view", "row"]])


def test_truncated_features(tmp_path: Path) -> None:
    file = tmp_path / artifacts.FEATURES
    file.parent.mkdir(parents=True)
    np.save(file, np.ones((3, 2), np.float16))
    assert artifacts.read_features(tmp_path).shape == (3, 2)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(OSError, match=r"features\.npy: ends too early; run `dvc checkout`"):
        artifacts.read_features(tmp_path)
