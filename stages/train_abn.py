"""train-abn and train-ablation@NAME: an Attention Branch Network on the frozen features.

Call    python -m stages.train_abn [STAGE@NAME]: `abn` of params.yaml, or with a NAME, `ablations.NAME`.
Reads   and writes what train-baseline does, under models/abn/ or models/NAME/.
"""

import sys

from landmarks import params, stage
from stages.train_baseline import train


def main() -> str:
    p = params.load()
    if len(sys.argv) == 1:
        return train("abn", p.abn, p)
    name = sys.argv[1].rpartition("@")[2]
    if name not in p.ablations:
        raise stage.UserError(f"ablations.{name}: not in params.yaml; it has {', '.join(sorted(p.ablations))}")
    return train(name, p.ablations[name], p)


if __name__ == "__main__":
    stage.run(main)
