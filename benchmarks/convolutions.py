"""One of the attention branch's 3x3 convolutions, forward and backward, in several ways: where ABN's training goes.

    python -m benchmarks.convolutions [WAY]      one of `WAYS`, or each in a process of its own, for oneDNN chooses its
                                                 vector code once a process

Prints a line for each way: its title, then milliseconds and, in brackets, the first digits of a hash of the result, for
the forward pass, the gradient of the input and that of the weights; tabs between. `benchmarks.speed` calls it.
"""

import hashlib
import os
import sys
from typing import NamedTuple

from benchmarks.speed import ROOT, median, process
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
    "avx2": Way("AVX2, as in training", "AVX2"),
    "native": Way("all that the processor has", "DEFAULT"),
    "avx2-last": Way("AVX2, channels_last", "AVX2", torch.channels_last),
    "native-last": Way("all that the processor has, channels_last", "DEFAULT", torch.channels_last),
    "product": Way("im2col and a matrix product, on MKL's path for every machine", "AVX2", product=True),
}


def multiplied(pictures: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution [N, C, H, W] as a matrix product."""
    columns = F.unfold(pictures, 3, padding=1)
    return (weight.flatten(1) @ columns).view(len(pictures), len(weight), *pictures.shape[2:])


def measured(way: Way) -> list[str]:
    """Milliseconds and bits of the three parts."""
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
    gradient = torch.from_numpy(rng.standard_normal(output.shape)).float().contiguous(memory_format=way.layout)
    parts = (
        lambda: convolve(pictures, weight),
        lambda: torch.autograd.grad(output, pictures, gradient, retain_graph=True)[0],
        lambda: torch.autograd.grad(output, weight, gradient, retain_graph=True)[0],
    )
    bits = [hashlib.sha256(part().detach().contiguous().numpy().tobytes()).hexdigest()[:4] for part in parts]
    return [f"{1000 * median(part, TIMES):.0f} ({digits})" for part, digits in zip(parts, bits, strict=True)]


def main() -> None:
    if len(sys.argv) > 1:
        way = WAYS[sys.argv[1]]
        print(way.title, *measured(way), sep="\t")
    else:
        for name in WAYS:
            print(process(sys.executable, "-m", "benchmarks.convolutions", name, cwd=ROOT).said, end="", flush=True)


if __name__ == "__main__":
    main()
