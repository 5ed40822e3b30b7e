"""Progress bars and counts for summary lines."""

from collections import Counter
from collections.abc import Iterable

from tqdm import tqdm


def progress(total: int | None, unit: str, name: str = "") -> tqdm:
    """A progress bar with a rate and what is left, on stderr; bytes (unit "B") in kilo, mega, giga."""
    scale = unit == "B"
    unit = unit if scale else f" {unit}"
    return tqdm(desc=name or None, total=total, unit=unit, unit_scale=scale, dynamic_ncols=True, mininterval=1)


def count_reasons(reasons: Iterable[str]) -> str:
    """How many of each there are, for a summary line: "2 broken, 1 small"."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(Counter(reasons).items()))
