"""What is measured, and the pictures that it is measured on."""

import subprocess
import sys
from pathlib import Path

from benchmarks import generated
from landmarks import images

import numpy as np
import pytest
from conftest import ROOT


def test_generated_pictures_are_different_and_of_the_usual_size() -> None:
    rows = generated.names(2000)
    assert len(rows) == sum(generated.class_sizes(2000).values()) == len({name for name, _ in rows})
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
