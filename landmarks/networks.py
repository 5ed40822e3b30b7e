"""The backbones: the available networks, their levels, and the trunk that computes features.

A backbone is a chain of layers: a network without its classifier. A level names a number of leading layers. VGG-16
(Simonyan & Zisserman, arXiv 1409.1556) is built here, all others by timm.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, TypeVar, cast

from landmarks.kernels import add_up
from landmarks.params import Backbone
from landmarks.stage import UserError
from landmarks.stage.errors import is_memory_error

import torch
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Module)  # a part of a chain of layers
GRID = 7  # features are averaged to 7x7, the size of conv5 for VGG's own input of 224 pixels

VGG = "vgg16"
VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each block
VGG_LEVELS = {"conv3": 17, "conv4": 24, "conv5": 31}  # up to the block's max pooling
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1


class Network(NamedTuple):
    """A backbone with random weights. `layers`, the chain, shares its tensors with `model`, which names them like
    published weights."""

    model: nn.Module
    layers: nn.Sequential
    levels: dict[str, int]  # number of leading layers, by name
    mean: tuple[float, float, float]  # of RGB in 0..1, as published weights of this network expect them
    std: tuple[float, float, float]


def network(name: str) -> Network:
    """The backbone called `name`. Raises `UserError` if it does not exist, or is no chain of convolutions."""
    return vgg16_network() if name == VGG else timm_network(name)


def vgg16_network() -> Network:
    """VGG-16's convolutions, named as in torchvision, which takes longer to import than torch."""
    layers, inputs = [], 3
    for channels, convolutions in VGG_BLOCKS:
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    chain = nn.Sequential(*layers)
    return Network(nn.Sequential(OrderedDict(features=chain)), chain, VGG_LEVELS, IMAGENET_MEAN, IMAGENET_STD)


def timm_network(name: str) -> Network:
    """A convolutional network of timm. Its levels are its feature maps, from 1, and `last`, the map before pooling."""
    import timm  # slow to import, and the default does not need it

    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="").eval()
    except Exception as error:  # no such model or tag, or one without these options
        if is_memory_error(error):
            raise
        raise UserError(f"backbone.name: timm has no {name} ({error!s:.100}); see timm.list_models()") from None
    try:
        steps = list(flatten_layers(model))
        ends = [f"{level['module']}." for level in model.feature_info]  # type: ignore[union-attr]
        lengths = [max(n for n, (step, _) in enumerate(steps, 1) if f"{step}.".startswith(end)) for end in ends]
        last = count_feature_layers(model)
        if max(lengths) > last:
            raise ValueError("a level lies beyond its last map")
    except Exception as error:  # a transformer, or a network that calls its layers in its own way
        if is_memory_error(error):
            raise
        text = f"{name} is no chain of convolutional layers ({error!s:.100})"
        raise UserError(f"backbone.name: {text}; set another") from None
    levels = {f"level{number}": length for number, length in enumerate(lengths, 1)} | {"last": last}
    config = timm.data.resolve_model_data_config(model)
    return Network(model, nn.Sequential(*[layer for _, layer in steps[:last]]), levels, config["mean"], config["std"])


def flatten_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a network in order, with their names; an `nn.Sequential` is flattened."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from flatten_layers(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


@torch.inference_mode()
def count_feature_layers(model: nn.Module) -> int:
    """The number of leading layers whose output equals timm's `forward_features`. Raises ValueError if none do."""
    model = copy.deepcopy(model)
    for weights in model.parameters():
        if not weights.any():  # timm initialises the end of a residual block as 0, which would hide the block
            nn.init.constant_(weights, 0.5)
    layers = [layer for _, layer in flatten_layers(model)]
    maps = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    wanted = model.forward_features(maps)  # type: ignore[operator]
    if wanted.ndim != 4:
        raise ValueError("its output is not a map")
    for length, layer in enumerate(layers, 1):
        maps = layer(maps)
        if torch.equal(maps, wanted):
            return length
    raise ValueError("its layers do not follow one another")


def split(backbone: Backbone) -> tuple[nn.Sequential, nn.Sequential]:
    """The chain up to `backbone.layer`, and the rest, with random weights. Layers keep their numbers.

    Raises `UserError` if the backbone has no such level, or a trained tail would have no parameters.
    """
    net = network(backbone.name)
    if backbone.layer not in net.levels:
        known = ", ".join(net.levels)
        raise UserError(f"backbone.layer: {backbone.name} has {known}, not {backbone.layer}; set one of those")
    length = net.levels[backbone.layer]
    rest = net.layers[length:]
    if backbone.tail == "trained" and not list(rest.parameters()):
        text = f"nothing to train follows {backbone.layer} in {backbone.name}"
        raise UserError(f"backbone.tail: {text}; set none, or a lower layer")
    return net.layers[:length], rest


def keep_size(layers: Part) -> Part:
    """Changes `layers` so that maps keep their size: convolutions have stride 1, and pooling is left out."""
    for module in list(layers.modules()):
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d | nn.AvgPool2d):
                setattr(module, name, nn.Identity())
    return layers


def load(part: Part, state: dict[str, Tensor]) -> Part:
    """Loads the weights of a part of the chain from `state`, the result of `weight_files.fetch`. Returns the part."""
    part.load_state_dict({name: state[f"features.{name}"] for name in part.state_dict()})
    return part


class ChannelSum(nn.Conv2d):
    """A convolution that a CPU computes as a sum over groups of its input channels."""

    parts: list[Tensor]  # the weights of each group

    def forward(self, maps: Tensor) -> Tensor:
        if not maps.is_cpu or maps.dtype != torch.float32:  # faster, and not bit-identical in any case
            return super().forward(maps)
        parts = zip(maps.split(self.parts[0].shape[1], dim=1), self.parts, strict=True)
        return add_up(self._conv_forward(*part, None if number else self.bias) for number, part in enumerate(parts))


def fix_order(layers: Part) -> Part:
    """Makes oneDNN's convolutions sum in the same order with AVX2 and with AVX-512. Returns `layers`.

    For channels_last, oneDNN sums over the rows of the kernel, then its columns, then the input channels. If the
    weights do not fit into the caches, it sums over one block of input channels after another. The size of a block
    depends on the processor. 128 channels of a 3x3 kernel are always one block.
    """
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d):
            # Unlike `contiguous`, `clone` also sets the strides of a 1x1 kernel. torch then uses channels_last for 1x1
            # maps, too.
            conv.weight.data = conv.weight.data.clone(memory_format=torch.channels_last)
            area = conv.kernel_size[0] * conv.kernel_size[1]
            channels = min(128, 9 * 128 // area)
            if type(conv) is nn.Conv2d and conv.groups == 1 and area > 1 and conv.in_channels > channels:
                conv.__class__ = ChannelSum
                parts = conv.weight.data.split(channels, dim=1)
                cast(ChannelSum, conv).parts = [part.clone(memory_format=torch.channels_last) for part in parts]
    return layers


class Trunk(nn.Module):
    """The frozen backbone up to `backbone.layer`: RGB pictures -> features, rounded to float16.

    Pictures are uint8 [N, S, S, 3], or floats in 0..1 [N, 3, S, S]. Features are the map averaged to [N, C, 7, 7], or
    with a trained tail the map as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, state: dict[str, Tensor], backbone: Backbone) -> None:
        super().__init__()
        self.features = fix_order(load(split(backbone)[0], state))
        self.register_buffer("mean", state["mean"].view(3, 1, 1))
        self.register_buffer("std", state["std"].view(3, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(GRID) if backbone.tail == "none" else nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.dtype == torch.uint8:
            pictures = pictures.permute(0, 3, 1, 2).float() / 255
        return self.pool(self.features((pictures - self.mean) / self.std)).half()


def trunk_weights(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Those weights that a `Trunk` reads. `state` has the weights of the whole chain."""
    kept = {"mean", "std"} | {f"features.{name}" for name in split(backbone)[0].state_dict()}
    return {name: tensor for name, tensor in sorted(state.items()) if name in kept}
