"""The built-in sample: about 2,000 synthetic pictures of 60 invented landmarks, drawn on demand.

It needs no files and no network. `raster.py` draws the scenes that `scene.py` builds from the meshes in `buildings.py`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from landmarks import stage
from landmarks.images import Picture
from landmarks.sources import Source
from landmarks.sources.sample.buildings import FAMILIES
from landmarks.sources.sample.raster import render

import pandas as pd
from joblib import delayed

# Pictures of the 60 most frequent landmarks in train.csv of Google Landmarks v1 (Kaggle, 2018). The sample has as many,
# divided by COUNT_DIVISOR.
GOOGLE_COUNTS = (
    *(49091, 48949, 23005, 18010, 12999, 10905, 9360, 9062, 8912, 8852, 8843, 8515, 7640, 6774, 6423, 6306, 5245, 5211),
    *(5172, 4838, 3687, 3584, 3560, 3468, 3375, 3347, 3315, 3315, 3116, 2524, 2326, 2292, 2195, 2008, 1958, 1958, 1944),
    *(1873, 1838, 1804, 1779, 1756, 1739, 1737, 1726, 1696, 1683, 1668, 1660, 1647, 1622, 1578, 1559, 1533, 1509, 1478),
    *(1441, 1436, 1434, 1411),
)
COUNT_DIVISOR = 176


@dataclass
class Sample(Source):
    """The sample of one seed, drawn by `workers` processes (0: one per core). Another seed has other buildings."""

    seed: int
    workers: int = 0

    def index(self) -> pd.DataFrame:
        rows = []
        for rank, count in enumerate(GOOGLE_COUNTS):
            landmark_id = f"{list(FAMILIES)[rank % len(FAMILIES)]}-{rank // len(FAMILIES) + 1:02d}"
            for number in range(round(count / COUNT_DIVISOR)):
                name = f"{self.seed}/sample/{landmark_id}/{number}"
                rows.append((hashlib.sha256(name.encode()).hexdigest()[:16], landmark_id))
        return pd.DataFrame(sorted(rows), columns=["id", "landmark_id"])

    def fetch(self, wanted: pd.DataFrame) -> dict[str, str]:
        return {}

    def pictures(self, wanted: pd.DataFrame) -> Iterator[Picture]:
        jobs = (delayed(render)(self.seed, row.id, row.landmark_id) for row in wanted.itertuples())
        yield from stage.run_in_processes(self.workers, jobs)
