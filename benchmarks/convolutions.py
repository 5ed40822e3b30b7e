"""One of the attention branch's 3x3 convolutions, forward and backward, in several ways: where ABN's training goes.

    python -m benchmarks.convolutions WAY        WAY is one of `WAYS`; oneDNN chooses its vector code once a process

Prints a line for each part: its name, milliseconds, and a hash of the result's bits. `benchmarks.speed` calls it.
"""

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from landmarks import determinism

import torch
from torch.nn import functional as F

PICTURES, CHANNELS, GRID = 64, 512, 7
TIMES = 10


class Way(NamedTuple):
    title: str
    vectors: str  # the most that oneDNN may use
    layout: torch.memory_format = torch.contiguous_format
    product: bool = False  # im2col and a matrix product, which is MKL's


WAYS = {
    "ours": Way("AVX2, as in training", "AVX2"),
    "any": Way("all that the processor has", "DEFAULT"),
    "ours-last": Way("AVX2, channels_last", "AVX2", torch.channels_last),
    "any-last": Way("all that the processor has, channels_last", "DEFAULT", torch.channels_last),
    "product": Way("im2col and a matrix product, on MKL's path for every machine", "AVX2", product=True),
}


def multiplied(pictures: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution [N, C, H, W] as a matrix product."""
    columns = F.unfold(pictures, 3, padding=1)
    return (weight.flatten(1) @ columns).view(len(pictures), len(weight), *pictures.shape[2:])


def measured(work: Callable[[], torch.Tensor]) -> tuple[float, str]:
    """Milliseconds, the median, and a hash of the result."""
    result, seconds = work(), []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    bits = hashlib.sha256(result.detach().contiguous().numpy().tobytes()).hexdigest()
    return 1000 * statistics.median(seconds), bits[:8]


def main() -> None:
    way = WAYS[sys.argv[1]]
    determinism.prepare_training()
    os.environ["ONEDNN_MAX_CPU_ISA"] = way.vectors
    rng = determinism.stream(0, "convolutions")
    arrays = (rng.standard_normal((n, CHANNELS, side, side)) for n, side in ((PICTURES, GRID), (CHANNELS, 3)))
    pictures, weight = (
        torch.from_numpy(array).float().contiguous(memory_format=way.layout).requires_grad_() for array in arrays
    )
    convolve = multiplied if way.product else lambda x, w: F.conv2d(x, w, padding=1)
    output = convolve(pictures, weight)
    assert torch.allclose(output, F.conv2d(pictures, weight, padding=1), atol=1e-2)
    pull = torch.from_numpy(rng.standard_normal(output.shape)).float().contiguous(memory_format=way.layout)
    parts = {
        "forward": lambda: convolve(pictures, weight),
        "input": lambda: torch.autograd.grad(output, pictures, pull, retain_graph=True)[0],
        "weights": lambda: torch.autograd.grad(output, weight, pull, retain_graph=True)[0],
    }
    for name, work in parts.items():
        milliseconds, bits = measured(work)
        print(name, f"{milliseconds:.0f}", bits)


if __name__ == "__main__":
    main()
