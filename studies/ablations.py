"""docs/ablations.md: every combination of layer, attention type and alpha. studies/experiments.py has the command."""

import itertools
from pathlib import Path

from landmarks import stage
from landmarks.report import percent
from studies import experiments
from studies.experiments import Name, Study
from tools.clone import Clone, Repro

TABLES = {
    "Accuracy": ["baseline", "abn", "abn above baseline", "perception branch", "attention branch"],
    "Attention map": ["energy", "deletion", "insertion"],
}
ROWS: dict[Name, dict[str, object]] = {
    (layer, attention, f"{alpha:g}"): {"backbone.layer": layer, "abn.attention": attention, "abn.alpha": alpha}
    for layer, attention, alpha in itertools.product(
        ("conv4", "conv5"), ("residual", "multiply"), (0.0, 0.25, 0.5, 1.0)
    )
}


def measure(name: Name, results: dict, clone: Clone, repro: Repro) -> list[str]:
    """The cells of a row."""
    baseline, abn = results["baseline"]["test"], results["abn"]["test"]
    accuracy = map(percent, (baseline["accuracy"], abn["accuracy"], abn["above_baseline"]))
    return [*accuracy, *experiments.attention(abn)]


STUDY = Study(Path("docs/ablations.md"), ("layer", "attention", "alpha"), TABLES, ROWS, measure)

if __name__ == "__main__":
    stage.run(lambda: experiments.main(STUDY))
