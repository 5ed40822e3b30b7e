"""One training step of the Attention Branch Network, on features that are ready.

    python -m benchmarks.training_step VARIANT

Prints the median seconds of a step. VARIANT is ours, or the memory format (contiguous, channels_last) of the same step
without the settings for equal bits, which leaves the choice of kernels to the libraries. `benchmarks.speed` calls it.
"""

import statistics
import sys
import timeit

import torch

STEPS = 30


def main() -> None:
    variant = sys.argv[1]
    if variant != "ours":
        torch.rand(64, 64) @ torch.rand(64, 64)  # MKL starts here, without the settings of landmarks
    from landmarks import artifacts, determinism, models, params, training

    p = params.load()
    if variant == "ours":
        determinism.prepare_training()
    landmarks, shape = artifacts.read_classes()["landmark_id"].tolist(), artifacts.read_features().shape[1:]
    facts = {"landmarks": landmarks, "shape": shape, "abn": p.abn, "seed": p.seed}
    model = models.build(models.Design(hidden=p.train.hidden, dropout=p.train.dropout, **facts)).train()
    features, labels = torch.rand(p.train.batch_size, *shape), torch.arange(p.train.batch_size) % len(landmarks)
    if variant == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    optimizer, _ = training.optimization(model, p.train, STEPS)

    def step() -> None:
        loss = model.loss(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    print(statistics.median(timeit.repeat(step, number=1, repeat=STEPS)))


if __name__ == "__main__":
    main()
