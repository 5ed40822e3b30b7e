"""fetch-backbone: the weights of the whole backbone, checked by SHA-256, with the mean and std of its input."""

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
