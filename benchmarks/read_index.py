"""How long, and in how much memory, an index as large as that of Google Landmarks v2 is read and ranked.

    .venv/bin/python -m benchmarks.read_index

Makes a train.csv of 5,000,000 rows and 203,094 classes (v2 has 4,132,914 rows), whose class sizes fall like rank^-0.8.
"""

import resource
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

from landmarks import classes
from landmarks.determinism import stream
from landmarks.sources.index import read_index

import numpy as np

ROWS, CLASSES = 5_000_000, 203_094


def write(path: Path) -> None:
    """Ids in random order, URLs as long as those of Wikimedia, every class at least once."""
    rng = stream(0, "index")
    weights = np.arange(1, CLASSES + 1) ** -0.8
    drawn = rng.choice(CLASSES, ROWS - CLASSES, p=weights / weights.sum())
    landmarks = rng.permutation(np.concatenate([np.arange(CLASSES), drawn])).tolist()
    ids = rng.permutation(ROWS).tolist()
    with path.open("w", encoding="ascii") as file:
        file.write("id,url,landmark_id\n")
        for number, landmark in zip(ids, landmarks, strict=True):
            url = f"http://upload.wikimedia.org/wikipedia/commons/a/a{number % 16:x}/Building_{number}_in_town.jpg"
            file.write(f"{number * 3689348814741:016x},{url},{landmark}\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.csv"
        writer = Process(target=write, args=(path,))  # another process, so that its memory is not ours
        writer.start()
        writer.join()
        start = time.perf_counter()
        index = read_index(path, ["id", "landmark_id"])
        read = time.perf_counter()
        ranking = classes.rank(index, skip_top=3, top_k=27, min_images=10)
        ranked = time.perf_counter()
        size = path.stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(f"{len(index):,} rows ({size:.0f} MB) of {len(ranking):,} classes:", end=" ")
    print(f"read in {read - start:.1f} s, ranked in {ranked - read:.1f} s, at most {memory:.2f} GB resident")


if __name__ == "__main__":
    main()
