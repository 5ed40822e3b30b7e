"""Convolutions and linear layers for training on a CPU: fast, and with the same bits with AVX2 and AVX-512.

oneDNN's channels_last convolutions and its matrix products add up the products of a sum in the same order at every
vector width. Only long sums are an exception: they are split at places that depend on the processor. This module
therefore splits long sums itself. The gradient of a convolution's weights is computed as a matrix product, because the
bits of oneDNN's own kernel for it depend on the vector width, except for depthwise convolutions. MKL, whose mode with
the same bits on all processors is slow, computes only what oneDNN cannot compute with the same bits.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

Pair = tuple[int, int]
MAX_SUM = 512  # of a matrix product; with AVX-512, oneDNN splits sums of 513 to 1024 products, with AVX2 it does not
MAX_PRODUCTS, MAX_CHANNELS = 128 * 3 * 3, 1024  # of a convolution that no kernel splits
torch_conv2d, torch_linear = F.conv2d, F.linear
# `allow_tf32=None` avoids a warning.
without_onednn = partial(torch.backends.mkldnn.flags, enabled=False, allow_tf32=None)


def install() -> None:
    """Replaces `torch.nn.functional.conv2d` and `linear`, which all layers call, by those of this module."""
    F.conv2d, F.linear = conv2d, linear  # type: ignore[assignment]


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
    @once_differentiable
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
    padded, strided = any(settings.padding), max(settings.stride) > 1
    if weight.shape[2:].numel() == 1:
        common = not padded
    else:
        common = (padded or strided) and not (strided and max(settings.dilation) > 1)
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
    """The gradient of the weights [K, C, H, W]: the product of the output's gradient and the windows of the inputs."""
    if settings.groups > 1:  # depthwise: oneDNN's own kernels give the same bits, in the contiguous format
        return torch_backward(gradient.contiguous(), inputs.contiguous(), weight, settings, False, True)[1]
    height, width = weight.shape[2:]
    rows = gradient.permute(0, 2, 3, 1)  # [N, H, W, K]
    seen = windows(inputs, rows.shape[1:3], (height, width), settings)
    pictures = max(1, MAX_SUM // rows.shape[1:3].numel())  # a copy of all windows would need too much memory
    weights = add_up(
        product(one.flatten(0, 2).t(), other.flatten(3).flatten(0, 2).t())
        for one, other in zip(rows.split(pictures), seen.split(pictures), strict=True)
    )
    return weights.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)


def windows(inputs: Tensor, outputs: Sequence[int], kernel: Pair, settings: Settings) -> Tensor:
    """A view [N, *outputs, *kernel, C]: the window of the inputs from which each position of the output is computed.

    `outputs` is (rows, columns).
    """
    stride, (above, left), dilation, _ = settings
    padded = channels_last(F.pad(inputs, (left, left, above, above)))
    image, channel, row, column = padded.stride()
    strides = image, row * stride[0], column * stride[1], row * dilation[0], column * dilation[1], channel
    return padded.as_strided((len(inputs), *outputs, *kernel, inputs.shape[1]), strides)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`. Float32 [..., C] on a CPU is computed by `Linear`, all else by torch."""
    if input.ndim < 2 or input.dtype != torch.float32 or not input.is_cpu:
        return torch_linear(input, weight, bias)
    return Linear.apply(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


class Linear(torch.autograd.Function):
    """The forward pass and the gradients of a linear layer of float32 on a CPU."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        ctx.save_for_backward(inputs, weight)
        # `product` may copy its second matrix, and the inputs are usually smaller than the weights. `clone`, because
        # autograd forbids in-place changes of a view, such as those of nn.ReLU(inplace=True).
        outputs = product(weight, inputs).t().clone(memory_format=torch.contiguous_format)
        return outputs if bias is None else outputs.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        (inputs, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if needed[0] else None,
            product(gradient.t(), inputs.t()) if needed[1] else None,
            gradient.sum(0) if needed[2] else None,
        )


def product(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product [M, N] of `first` [M, K] and `second.T` [K, N].

    Its operator is the one that torch.compile uses for oneDNN. It is private, but torch's version is pinned.
    """
    if min(*first.shape, *second.shape) < 2 or not torch.backends.mkldnn.is_available():
        return first @ second.t()  # of a single row, oneDNN's bits may depend on the vector width
    return add_up(
        torch.ops.mkldnn._linear_pointwise(one, dense(other), None, "none", [], "")
        for one, other in zip(first.split(MAX_SUM, 1), second.split(MAX_SUM, 1), strict=True)
    )


def dense(matrix: Tensor) -> Tensor:
    """`matrix` or a copy, without gaps in memory. oneDNN is slow if its second matrix has any."""
    return matrix if matrix.t().is_contiguous() else matrix.contiguous()
