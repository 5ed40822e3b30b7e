"""Convolutions that train on a CPU with the same bits on every x86-64 processor, at the full width of its vectors.

oneDNN's kernels for a forward pass in channels_last add the products of a sum in one order, whatever the vector width.
Only a long sum is cut, at places that depend on the processor, so it is cut here first. The kernels for the gradient of
the inputs are alike. Those for the gradient of the weights are not, and are slower. But that gradient is a forward pass
as well: pictures and channels change places, and the gradient of the output is the filter.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

Pair = tuple[int, int]
LAST = torch.channels_last
PRODUCTS, CHANNELS = 128 * 3 * 3, 1024  # at most in a sum
torch_conv2d = F.conv2d
without_onednn = partial(torch.backends.mkldnn.flags, enabled=False, allow_tf32=None)  # the latter avoids a warning


class Settings(NamedTuple):
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int = 1


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`: portable for float32 [N, C, H, W] on a CPU, and torch's own for all else."""
    if input.ndim != 4 or input.dtype != torch.float32 or not input.is_cpu or isinstance(padding, str):
        return torch_conv2d(input, weight, bias, stride, padding, dilation, groups)
    return Convolution.apply(input, weight, bias, Settings(_pair(stride), _pair(padding), _pair(dilation), groups))


class Convolution(torch.autograd.Function):
    """`conv2d` and its gradients."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        inputs = inputs.contiguous(memory_format=LAST)
        ctx.save_for_backward(inputs, weight)
        ctx.settings = settings
        if has_portable_kernels(inputs, weight, settings):
            return forward(inputs, weight, bias, settings)
        with without_onednn():
            return torch_conv2d(inputs, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        (inputs, weight), settings = ctx.saved_tensors, ctx.settings
        for_inputs, for_weight, for_bias, _ = ctx.needs_input_grad
        of_inputs = of_weight = None
        if not has_portable_kernels(inputs, weight, settings):
            with without_onednn():
                of_inputs, of_weight = torch_backward(gradient, inputs, weight, settings, for_inputs, for_weight)
        else:
            gradient = gradient.contiguous(memory_format=LAST)
            if for_inputs:
                size = longest(weight) if settings.groups == 1 else settings.groups
                parts = zip(gradient.split(size, 1), weight.split(size), strict=True)
                of_inputs = total(
                    torch_backward(part.contiguous(memory_format=LAST), inputs, filters, settings, True, False)[0]
                    for part, filters in parts
                )
            if for_weight and settings.groups == 1:
                of_weight = weight_gradient(gradient, inputs, weight, settings)
            elif for_weight:  # each channel for itself; these kernels are alike in the contiguous format
                contiguous = gradient.contiguous(), inputs.contiguous()
                of_weight = torch_backward(*contiguous, weight, settings, False, True)[1]
        return of_inputs, of_weight, gradient.sum((0, 2, 3)) if for_bias else None, None


def has_portable_kernels(inputs: Tensor, weight: Tensor, settings: Settings) -> bool:
    """Whether this is true of oneDNN's kernels. Otherwise, which is rare, torch multiplies matrices with MKL."""
    pictures, channels, *size = inputs.shape
    if settings.groups > 1:
        return settings.groups == channels == len(weight) >= 32  # with fewer, threads share a sum
    usual = weight.shape[2:].numel() == 1 or any(settings.padding) or max(settings.stride) > 1
    return usual and min(pictures, channels, max(size)) > 1


def torch_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, settings: Settings, *needed: bool
) -> tuple[Tensor, Tensor]:
    """torch's gradients of the inputs and of the weights, if `needed`."""
    geometry = *settings[:3], False, (0, 0), settings.groups
    return torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *geometry, (*needed, False))[:2]


def total(parts: Iterator[Tensor]) -> Tensor:
    """The sum of the parts, in the first of them."""
    first = next(parts)
    for part in parts:
        first += part
    return first


def longest(weight: Tensor) -> int:
    """How many channels a sum may have."""
    return max(1, min(CHANNELS, PRODUCTS // weight.shape[2:].numel()))


def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """`conv2d`, in channels_last and with sums that are not too long."""
    size = longest(weight) if settings.groups == 1 else settings.groups
    return total(
        torch_conv2d(part.contiguous(memory_format=LAST), filters, None if start else bias, *settings)
        for start, (part, filters) in enumerate(zip(inputs.split(size, 1), weight.split(size, 1), strict=True))
    )


def weight_gradient(gradient: Tensor, inputs: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """The gradient of the weights [K, C, H, W] of a convolution without groups."""
    (height, width), (stride, padding, dilation, _) = weight.shape[2:], settings
    if height == width == 1 and not any(padding):  # a product of matrices
        rows = inputs[:, :, :: stride[0], :: stride[1]].transpose(0, 1).flatten(1)  # [C, N * H * W]
        image = gradient.transpose(0, 1).flatten(1)[None, None].permute(0, 3, 1, 2)  # [1, N * H * W, 1, K]
        return forward(image, rows[..., None, None], None, Settings((1, 1), (0, 0), (1, 1))).permute(3, 1, 0, 2)
    whole = forward(inputs.transpose(0, 1), gradient.transpose(0, 1), None, Settings(dilation, padding, stride))
    return whole.transpose(0, 1)[..., :height, :width]
