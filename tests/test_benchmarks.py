"""What is measured, the pictures that it is measured on, and the page."""

import subprocess
import sys
from pathlib import Path

from benchmarks import generated, speed
from landmarks import images

import numpy as np
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
def test_the_gpu_measurement_runs_on_the_cpu(tmp_path: Path) -> None:
    """Every stage, comparison and table of benchmarks.gpu, with 200 small pictures."""
    page = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(page)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = page.read_text(encoding="utf-8")
    for heading in (
        "Stages, in seconds",
        "Extraction, in views per second",
        "Training, in seconds per epoch",
        "Agreement",
    ):
        assert f"## {heading}" in text
    assert "gives the same weights" in text


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
