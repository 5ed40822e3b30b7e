"""Progress bars and counts for summary lines."""

from collections import Counter
from collections.abc import Iterable

from tqdm import tqdm


def progress(total: int | None, unit: str, name: str = "", items: Iterable | None = None) -> tqdm:
    """A progress bar on stderr with rate and remaining time, which passes `items` through if they are given.

    The unit "B" (bytes) is shown as kB, MB, GB.
    """
    scale = unit == "B"
    unit = unit if scale else f" {unit}"
    return tqdm(items, name or None, total, unit=unit, unit_scale=scale, dynamic_ncols=True, mininterval=1)


def count_reasons(reasons: Iterable[str]) -> str:
    """The number of each reason, in alphabetical order, for a summary line: "2 broken, 1 small"."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(Counter(reasons).items()))
