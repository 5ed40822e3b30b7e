"""The backbones and the frozen trunk."""

import re

from landmarks import networks, weight_files
from landmarks.networks import Trunk
from landmarks.params import Backbone

import pytest
import timm
import torch
from conftest import BACKBONES, LITE, random_weights, user_error
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

STATE = random_weights("vgg16", 1)


def vgg(layer: str, tail: str = "none") -> Backbone:
    return Backbone(name="vgg16", weights="random", layer=layer, tail=tail)


@pytest.mark.parametrize(("layer", "channels"), [("conv3", 256), ("conv4", 512), ("conv5", 512)])
@pytest.mark.parametrize("crop", [64, 112, 224])
@torch.inference_mode()
def test_every_layer_gives_a_map_of_the_same_size(layer: str, channels: int, crop: int) -> None:
    output = Trunk(STATE, vgg(layer))(torch.rand(1, 3, crop, crop))
    assert output.shape == (1, channels, 7, 7) and output.dtype == torch.float16
    assert output.isfinite().all() and (output >= 0).all() and output.std() > 0


def test_the_layers_are_torchvisions() -> None:
    """So that its weights fit by name."""
    theirs = make_layers(cfgs["D"], batch_norm=False)
    net = networks.network("vgg16")
    assert str(net.layers) == str(theirs)
    assert net.levels == {"conv3": 17, "conv4": 24, "conv5": 31}
    assert net.model.state_dict().keys() == {f"features.{name}" for name in theirs.state_dict()}


@pytest.mark.slow
@torch.inference_mode()
def test_a_lower_layer_is_a_part_of_a_higher_one() -> None:
    pictures = torch.rand(2, 3, 224, 224)
    lower, higher = Trunk(STATE, vgg("conv4")), Trunk(STATE, vgg("conv5"))
    before_pooling = lower.features((pictures - lower.mean) / lower.std)
    assert torch.equal(lower(pictures), torch.nn.functional.avg_pool2d(before_pooling, 2).half())
    assert torch.equal(higher(pictures), higher.features[len(lower.features) :](before_pooling).half())


TIMM = [
    "tf_efficientnet_lite0",
    "resnet18.a1_in1k",
    "convnext_atto",
    "mobilenetv3_small_050",
    "densenet121",
    "regnetx_002",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_timms_levels_are_those_of_timm(name: str) -> None:
    """Against its own two ways to get at them: `features_only`, and `forward_features` for the last map."""
    state = weight_files.fetch(name, "random", 1)
    levels = networks.network(name).levels
    pictures = torch.rand(2, 3, 64, 64)
    theirs = timm.create_model(name, features_only=True).eval()
    whole = timm.create_model(name, num_classes=0, global_pool="").eval()
    mine = networks.network(name)
    networks.load(mine.layers, state)
    for weights in mine.model.parameters():
        if weights.abs().max() < 1e-5:  # what begins as nothing, or nearly, would hide a block that is missing
            torch.nn.init.constant_(weights, 0.5)
    state |= {f"features.{key}": tensor for key, tensor in mine.layers.state_dict().items()}
    theirs.load_state_dict({**theirs.state_dict(), **named(theirs, mine.model)})
    whole.load_state_dict(mine.model.state_dict())
    expected = dict(zip(levels, [*theirs((pictures - state_mean(state)) / state_std(state)), None], strict=True))
    expected["last"] = whole.forward_features((pictures - state_mean(state)) / state_std(state))
    for level, maps in expected.items():
        block = Backbone(name=name, weights="random", layer=level, tail="none")
        found = Trunk(state, block).features((pictures - state_mean(state)) / state_std(state))
        assert torch.allclose(found, maps, atol=1e-3), level


def state_mean(state: dict[str, Tensor]) -> Tensor:
    return state["mean"].view(3, 1, 1)


def state_std(state: dict[str, Tensor]) -> Tensor:
    return state["std"].view(3, 1, 1)


def named(theirs: torch.nn.Module, mine: torch.nn.Module) -> dict[str, Tensor]:
    """Weights of `mine` under the names that `features_only` gives them: "layer1_0.x" or "layer1.0.x"."""
    known = {re.sub(r"[._]", "", name): tensor for name, tensor in mine.state_dict().items()}
    return {name: known[re.sub(r"[._]", "", name)] for name in theirs.state_dict()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_net", "timm has no no_such_net"),
        ("resnet18.no_such_tag", "timm has no resnet18.no_such_tag"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224 is no chain of convolutional layers"),
        ("hrnet_w18_small", "hrnet_w18_small is no chain of convolutional layers"),
    ],
)
def test_what_is_no_chain_of_layers_is_refused(name: str, message: str) -> None:
    with user_error(rf"backbone\.name: {message}"):
        networks.network(name)


def test_a_level_that_is_not_there() -> None:
    with user_error(r"backbone\.layer: resnet18 has level1, .*, level5, last, not level6"):
        networks.split(Backbone(name="resnet18", weights="random", layer="level6", tail="none"))


@pytest.mark.parametrize(("name", "layer"), [("vgg16", "conv5"), ("resnet18", "level5"), ("resnet18", "last")])
def test_a_tail_has_something_to_train(name: str, layer: str) -> None:
    with user_error(rf"backbone\.tail: nothing to train follows {layer} in {name}; set none"):
        networks.split(Backbone(name=name, weights="random", layer=layer, tail="trained"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "tf_efficientnet_lite0"])
def test_no_layer_is_lost(name: str) -> None:
    """Not even those that do nothing yet: timm's residual blocks begin as identities."""
    net = networks.network(name)
    assert len(net.layers.state_dict()) == len(net.model.state_dict())


@pytest.mark.parametrize("block", [vgg("conv4"), LITE], ids=["vgg16", "timm"])
@torch.inference_mode()
def test_the_two_parts_make_the_whole(block: Backbone) -> None:
    net, pictures = networks.network(block.name), torch.rand(1, 3, 96, 96)
    state = {f"features.{name}": tensor for name, tensor in net.layers.state_dict().items()}
    lower, rest = (networks.load(part, state).eval() for part in networks.split(block))
    published = net.model if block.name == "vgg16" else net.model.forward_features
    assert torch.equal(rest(lower(pictures)), published(pictures))


@torch.inference_mode()
def test_for_a_tail_the_map_stays_as_it_is() -> None:
    pictures = torch.rand(1, 3, 224, 224)
    assert Trunk(STATE, vgg("conv4", "trained"))(pictures).shape == (1, 512, 14, 14)


@torch.inference_mode()
def test_bytes_and_floats_give_the_same_features() -> None:
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    trunk = Trunk(STATE, vgg("conv3"))
    assert torch.equal(trunk(pixels), trunk(pixels.permute(0, 3, 1, 2).float() / 255))


@torch.inference_mode()
def test_mean_and_std_normalise_the_input() -> None:
    """Other mean and std see another picture as this one."""
    pictures = torch.rand(1, 3, 64, 64)
    plain = Trunk(STATE | {"mean": torch.zeros(3), "std": torch.ones(3)}, vgg("conv3"))
    normalised = (pictures - STATE["mean"].view(3, 1, 1)) / STATE["std"].view(3, 1, 1)
    assert torch.allclose(Trunk(STATE, vgg("conv3"))(pictures), plain(normalised))
    assert not torch.allclose(plain(pictures), plain(normalised))


def test_sums_over_parts_of_the_channels_are_convolutions() -> None:
    pictures = torch.rand(1, 3, 32, 32)
    plain = networks.load(networks.split(vgg("conv5"))[0], STATE)
    trunk = Trunk(STATE, vgg("conv5")).features
    assert sum(isinstance(layer, networks.ChannelSum) for layer in trunk) == 8  # of more than 128 channels
    assert torch.allclose(trunk(pictures), plain(pictures), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", BACKBONES)
def test_the_trunk_is_frozen(block: Backbone) -> None:
    trunk = Trunk(random_weights(block.name, 1), block)
    assert not any(module.training for module in trunk.modules())
    assert list(trunk.parameters()) and not any(parameter.requires_grad for parameter in trunk.parameters())
    assert not trunk(torch.rand(1, 3, 64, 64)).requires_grad


@pytest.mark.parametrize("block", [*map(vgg, ("conv3", "conv4", "conv5")), LITE], ids=lambda block: block.layer)
def test_of_the_weights_only_what_is_needed(block: Backbone) -> None:
    full = random_weights(block.name, 1)
    state = networks.trunk_weights(full, block)
    kept = Trunk(state, block).features.state_dict()
    assert len(state) == len(kept) + 2 and (len(state) < len(full) or block.layer == "conv5")
    assert all(torch.equal(full[f"features.{name}"], tensor) for name, tensor in kept.items())
