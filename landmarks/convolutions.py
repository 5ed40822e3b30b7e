"""Convolutions for training on a CPU: at the processor's full vector width, with the same bits with AVX2 and AVX-512.

oneDNN's channels_last kernels for the forward pass and for the gradient of the inputs add up the products of a sum in
the same order at every vector width. Only long sums are an exception: the kernels split them at places that depend on
the processor. This module therefore splits long sums itself. oneDNN's kernels for the gradient of the weights depend on
the vector width and are slower. That gradient is computed as a forward pass instead, in which pictures and channels are
swapped and the gradient of the output is the filter.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

Pair = tuple[int, int]
MAX_PRODUCTS, MAX_CHANNELS = 128 * 3 * 3, 1024  # of a sum that no kernel splits
torch_conv2d = F.conv2d
# `allow_tf32=None` avoids a warning.
without_onednn = partial(torch.backends.mkldnn.flags, enabled=False, allow_tf32=None)


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
    """`torch.nn.functional.conv2d`. Float32 [N, C, H, W] on a CPU is computed by `Convolution`, all else by torch."""
    if input.ndim != 4 or input.dtype != torch.float32 or not input.is_cpu or isinstance(padding, str):
        return torch_conv2d(input, weight, bias, stride, padding, dilation, groups)
    return Convolution.apply(input, weight, bias, Settings(_pair(stride), _pair(padding), _pair(dilation), groups))


class Convolution(torch.autograd.Function):
    """The forward pass and the gradients of a convolution of float32 on a CPU."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        inputs = channels_last(inputs)
        ctx.save_for_backward(inputs, weight)
        ctx.settings = settings
        if has_portable_kernels(inputs, weight, settings):
            return forward(inputs, weight, bias, settings)
        with without_onednn():
            return torch_conv2d(inputs, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        (inputs, weight), settings = ctx.saved_tensors, ctx.settings
        needs_inputs, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gradients: tuple[Tensor | None, ...]
        if has_portable_kernels(inputs, weight, settings):
            gradient = channels_last(gradient)
            gradients = (
                input_gradient(gradient, inputs, weight, settings) if needs_inputs else None,
                weight_gradient(gradient, inputs, weight, settings) if needs_weight else None,
            )
        else:
            with without_onednn():
                gradients = torch_backward(gradient, inputs, weight, settings, needs_inputs, needs_weight)
        return *gradients, gradient.sum((0, 2, 3)) if needs_bias else None, None


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def has_portable_kernels(inputs: Tensor, weight: Tensor, settings: Settings) -> bool:
    """Whether oneDNN adds up in the same order at every vector width. MKL computes the few other convolutions."""
    pictures, channels, *size = inputs.shape
    if settings.groups > 1:
        return settings.groups == channels == len(weight) >= 32  # with fewer channels, threads share a sum
    common = weight.shape[2:].numel() == 1 or any(settings.padding) or max(settings.stride) > 1
    return common and min(pictures, channels, max(size)) > 1


def torch_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, settings: Settings, *needed: bool
) -> tuple[Tensor, Tensor]:
    """torch's gradients of the inputs and of the weights; `needed` says for each whether it is computed."""
    geometry = *settings[:3], False, (0, 0), settings.groups
    return torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *geometry, (*needed, False))[:2]


def add_up(parts: Iterator[Tensor]) -> Tensor:
    """Adds all parts to the first one, in place."""
    first = next(parts)
    for part in parts:
        first += part
    return first


def channels_per_sum(weight: Tensor, settings: Settings) -> int:
    """The number of channels whose products are added up in one convolution."""
    if settings.groups > 1:
        return settings.groups
    return max(1, min(MAX_CHANNELS, MAX_PRODUCTS // weight.shape[2:].numel()))


def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """`conv2d` in channels_last, as the sum of convolutions of at most `channels_per_sum` input channels."""
    size = channels_per_sum(weight, settings)
    return add_up(
        torch_conv2d(channels_last(part), filters, None if number else bias, *settings)
        for number, (part, filters) in enumerate(zip(inputs.split(size, 1), weight.split(size, 1), strict=True))
    )


def input_gradient(gradient: Tensor, inputs: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """The gradient of the inputs, as the sum over parts of at most `channels_per_sum` output channels."""
    size = channels_per_sum(weight, settings)
    return add_up(
        torch_backward(channels_last(part), inputs, filters, settings, True, False)[0]
        for part, filters in zip(gradient.split(size, 1), weight.split(size), strict=True)
    )


def weight_gradient(gradient: Tensor, inputs: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """The gradient of the weights [K, C, H, W]."""
    if settings.groups > 1:  # depthwise: oneDNN's own kernels give the same bits, in the contiguous format
        return torch_backward(gradient.contiguous(), inputs.contiguous(), weight, settings, False, True)[1]
    (height, width), (stride, padding, dilation, _) = weight.shape[2:], settings
    if height == width == 1 and not any(padding):  # a product of matrices
        rows = inputs[:, :, :: stride[0], :: stride[1]].transpose(0, 1).flatten(1)  # [C, N * H * W]
        image = gradient.transpose(0, 1).flatten(1)[None, None].permute(0, 3, 1, 2)  # [1, N * H * W, 1, K]
        return forward(image, rows[..., None, None], None, Settings((1, 1), (0, 0), (1, 1))).permute(3, 1, 0, 2)
    # The result may have more rows and columns than the kernel, if the stride leaves some inputs unused.
    weights = forward(inputs.transpose(0, 1), gradient.transpose(0, 1), None, Settings(dilation, padding, stride))
    return weights.transpose(0, 1)[..., :height, :width]
