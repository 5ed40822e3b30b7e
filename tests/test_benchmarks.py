"""What is measured, the pictures that it is measured on, and the page."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks import generated, scale, speed
from landmarks import images, params, sources

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT


def test_generated_pictures_are_different_and_of_the_usual_size() -> None:
    sizes = generated.study_sizes(2000)
    rows = generated.names(sizes)
    assert len(rows) == sum(sizes.values()) == len({name for name, _ in rows})
    pictures = [generated.draw(*row) for row in rows[:40]]
    assert all(20_000 < len(picture.picture) < 40_000 for picture in pictures)
    hashes = np.array([images.perceptual_hash(images.decode(p.picture)) for p in pictures], dtype=np.uint64)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert distance[~np.eye(len(hashes), dtype=bool)].min() > 6


@pytest.mark.slow
def test_the_gpu_measurement_runs_on_the_cpu() -> None:
    """Every stage, comparison and table of benchmarks.gpu, with 200 small pictures. It leaves the committed page."""
    committed = (ROOT / "benchmarks/gpu.md").read_bytes()
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert (ROOT / "benchmarks/gpu.md").read_bytes() == committed
    for heading in (
        "Stages, in seconds",
        "Extraction, in views per second",
        "Training, in seconds per epoch",
        "Agreement",
    ):
        assert f"## {heading}" in text
    assert "gives the same weights" in text
    assert re.search(r"test_gpu\.py`: .*\b\d+ (skipped|passed)", text) and " failed" not in text


def test_targets_stand_beside_what_was_measured_and_the_limit() -> None:
    seconds = {"first run": 100.0, "table": 80.0, "ablation": 25.0, "fit": 12.0, "arithmetic": 60.0}
    found = [{**seconds, "additional": 0.97, "usual table": 480.0, "usual ablation": 150.0}] * 2
    sizes = [speed.Size(crop, (1, 2), 1, (5, 5, 0.96)) for crop in (112, 224)]
    rows = {name: values for name, *values in speed.summary(0.9, found, sizes)}
    assert rows["one ablation, s"] == ["25", "<= 30 with AVX-512", "12"]
    assert rows["one ablation without its training, s"][0] == "13"
    assert rows["table against the usual way, 112 pixels (480 s / 80 s)"] == ["6.0", ">= 5 with AVX-512", "8.0"]
    assert rows["an additional view, relative to the trunk's limit, 224 pixels"] == ["0.97", ">= 0.96", "1"]
    assert len(rows) == 10


def test_the_full_scale_has_the_study_s_sizes() -> None:
    sizes, skipped = scale.class_sizes(None, 1)
    counts = list(sizes.values())
    assert sum(counts) == 1_193_208 and sum(counts[skipped : skipped + 27]) == 176_358
    assert max(counts[skipped + 27 :]) < min(counts[: skipped + 27])
    sizes, skipped = scale.class_sizes(1000, 1)
    assert skipped == 0 and sum(list(sizes.values())[:1000]) == 300_000
    counts = list(scale.class_sizes(1000, 0.2)[0].values())
    assert counts == sorted(counts, reverse=True), "the filter keeps the first classes"


@pytest.mark.slow
def test_the_data_set_of_the_scale_run_can_be_downloaded(tmp_path: Path) -> None:
    sizes, _ = scale.class_sizes(2, 0.03)
    kept = list(sizes)[:2]
    assert scale.write_data_set(tmp_path / "data", sizes, kept) == sum(sizes[name] for name in kept)
    p = params.load(ROOT / "params.yaml")
    data = p.data.model_copy(update={"source": "gldv2", "root": str(tmp_path / "data")})
    with sources.open_source(data, p.download, seed=0, workers=1, scratch=tmp_path / "scratch") as source:
        index = source.index()
        assert index["landmark_id"].value_counts().to_dict() == sizes
        wanted = index[index["landmark_id"].isin(kept)]
        assert source.fetch(wanted) == {}
        picture = next(source.pictures(wanted))
    assert picture.picture == generated.draw(picture.id, picture.landmark_id).picture
    assert picture.author == "Somebody"


def test_growth_compares_pictures_and_additional_pictures() -> None:
    sizes = {"1 %": [20.0, 10.0, 1.0], "10 %": [110.0, 19.0, 1.1], "100 %": [1010.0, 919.0, 1.2]}
    seconds = pd.DataFrame(sizes, index=["linear", "square", "constant"])
    found = scale.growth(seconds, [10, 100, 1000])
    assert list(found) == ["10 % / 1 %", "100 % / 10 %", "additional"]
    assert found.loc["linear"].tolist() == pytest.approx([0.55, 101 / 110, 1])
    assert found.loc["square", "additional"] == pytest.approx(10)
    assert np.isnan(found.loc["constant", "additional"])


@pytest.mark.slow
def test_the_scale_run_measures_every_stage(tmp_path: Path) -> None:
    """The whole pipeline on 61 generated pictures of four classes."""
    out = tmp_path / "scale.md"
    command = [sys.executable, "-m", "benchmarks.scale", "--classes", "4", "--percent", "5", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    for heading in ("Seconds", "Growth", "Memory", "Disk"):
        assert f"## {heading}" in text
    for name in ("download", "extract-features", "train-abn", "plot"):
        assert text.count(f"| {name} ") == 3  # seconds, memory, disk; one size does not grow


@pytest.mark.slow
def test_late_workers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers join one, and take part (`joined` asserts it). No process stays."""
    pytest.importorskip("distributed", reason="needs requirements-cluster.txt, see docs/cluster.md")
    from benchmarks import cluster

    monkeypatch.setattr(cluster, "TASKS", 36)  # enough for slow workers to join before the last third
    before = set(psutil.Process().children())
    assert cluster.joined() > 0
    assert set(psutil.Process().children()) <= before
