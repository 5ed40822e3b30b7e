"""Checks that the pipeline reproduces the committed results, here or under other conditions.

    .venv/bin/python -m tools.verify [FACTOR=VALUE ...]     one run; `make verify` is the one without a factor
    .venv/bin/python -m tools.verify --matrix               every value of every factor, and other parameters with
                                                            other kernels; `make verify-matrix`

Runs the whole pipeline in a clone of HEAD, without a cache, and compares dvc.lock, metrics/ and plots/ with the
committed ones. If outs differ, it lists them, keeps the clone, and exits with status 1. With `-S KEY=VALUE`, a first
run without factors gives the results to compare with.
"""

import argparse
import time
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError
from tools.clone import ELSEWHERE, FACTORS, Clone, pair, temporary_folder

import pandas as pd

# Every value of every factor.
MATRIX = (
    ("1", "1", "avx2", "copy", "UTC0", "C", "0"),
    ("2", "4", "avx512", ELSEWHERE, "XXX-13:45", "tr_TR.UTF-8", "random"),
)
# Other parameters, whose results are compared between this processor's kernels and AVX2's, with few pictures.
SETTINGS = (
    "augment.crop=224",
    "augment.crop=224 backbone.name=tf_efficientnet_lite0 backbone.weights=efficientnet-lite0 backbone.layer=level4"
    " backbone.tail=trained",
)
SHORT = "filter.top_k=2 augment.views=1 train.epochs=1"


def verify(source: Path, **factors: str) -> str:
    """Raises `UserError` if a run under these conditions differs from HEAD of `source`; prints the differences."""
    with temporary_folder() as folder:
        clone = Clone(source, folder, **factors)
        clone.reproduce()
        clone.check_differences()
    return "identical"


def changed(source: Path, folder: Path, settings: list[tuple[str, str]]) -> Path:
    """A clone of `source` in `folder` with other parameters and their results, committed."""
    clone = Clone(source, folder)
    clone.apply(settings)
    clone.reproduce()
    clone.commit()
    return clone.root


def matrix(source: Path) -> str:
    """Makes the runs of `MATRIX` and `SETTINGS` and prints a table. Raises `UserError` if any run differed."""
    runs = [("", dict(zip(FACTORS, values, strict=True))) for values in MATRIX]
    runs += [(settings, {"kernels": "avx2"}) for settings in SETTINGS]
    rows, different = [], 0
    for settings, factors in runs:
        try:
            with temporary_folder() as folder:
                pairs = [pair(text) for text in f"{settings} {SHORT}".split()]
                result = verify(changed(source, folder, pairs) if settings else source, **factors)
        except UserError as error:
            result, different = str(error), different + 1
        rows.append([settings, *(factors.get(factor, "") for factor in FACTORS), result])
    print(pd.DataFrame(rows, columns=["parameters", *FACTORS, "result"]).to_markdown(index=False), flush=True)
    if different:
        raise UserError(f"{different} of {len(runs)} runs differ; try python -m tools.verify FACTOR=VALUE")
    return f"{len(runs)} runs identical"


def main() -> str:
    known = "; ".join(f"{factor}: {', '.join(values)}" for factor, values in FACTORS.items())
    parser = argparse.ArgumentParser(prog="verify", description=__doc__.split("\n")[0])
    parser.add_argument("factors", nargs="*", type=pair, metavar="FACTOR=VALUE", help=known)
    parser.add_argument("--matrix", action="store_true", help="every value of every factor, in a few runs")
    parser.add_argument("-S", dest="settings", action="append", default=[], type=pair, metavar="KEY=VALUE")
    given = parser.parse_args()
    for factor, value in given.factors:
        if value not in FACTORS.get(factor, {}):
            parser.error(f"{factor}={value} is not known; {known}")
    start, source = time.monotonic(), Path.cwd()
    with temporary_folder() as folder:
        if given.settings:
            source = changed(source, folder, given.settings)
        text = matrix(source) if given.matrix else verify(source, **dict(given.factors))
    return f"{text}, in {(time.monotonic() - start) / 60:.1f} minutes"


if __name__ == "__main__":
    stage.run(main)
