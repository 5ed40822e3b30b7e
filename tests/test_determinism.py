"""Named random streams, and the code paths of numeric libraries."""

import json
import os
import platform
import subprocess
import sys

from landmarks import determinism

import numpy as np
import pytest
import torch
from conftest import ROOT, user_error


def numbers(seed: int, *names: str | int) -> list[int]:
    return determinism.stream(seed, *names).integers(2**32, size=8).tolist()


def test_the_same_name_gives_the_same_stream() -> None:
    assert numbers(1, "split", "a") == numbers(1, "split", "a")


@pytest.mark.parametrize("other", [(2, "split", "a"), (1, "split", "b"), (1, "split"), (1, "augment", "a")])
def test_other_seeds_and_names_differ(other: tuple) -> None:
    assert numbers(*other) != numbers(1, "split", "a")


def test_a_stream_is_the_same_on_every_machine() -> None:
    """And in every release, because published numbers depend on it."""
    assert determinism.stream(2019, "order", 0).permutation(8).tolist() == [7, 6, 0, 2, 1, 3, 4, 5]


def test_torch_is_seeded_by_name() -> None:
    def draw(*names: str) -> list[float]:
        determinism.seed_torch(1, *names)
        return torch.rand(4).tolist()

    assert draw("a") == draw("a") != draw("b")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is x86-64's")
def test_no_library_uses_avx512() -> None:
    """Checked in a new process that imports the package first, as every stage does."""
    code = """if True:
        import json, os
        import landmarks
        import numpy, torch
        extensions = numpy.show_config(mode="dicts")["SIMD Extensions"]
        print(json.dumps([extensions["found"], torch.backends.cpu.get_cpu_capability(), os.environ["MKL_CBWR"]]))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    numpy_paths, torch_path, mkl = json.loads(done.stdout)
    assert not [name for name in numpy_paths if name == "X86_V4" or name.startswith("AVX512")]
    assert torch_path in ("AVX2", "DEFAULT")
    assert mkl == "COMPATIBLE"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is x86-64's")
def test_features_are_the_same_without_avx512() -> None:
    """At 224 pixels, where VGG-16's kernels sum in blocks that depend on the processor, and of a 1x1 map.

    The user's environment must not choose kernels of other bits, either.
    """
    code = """if True:
        import hashlib
        from landmarks import determinism, features, networks, weight_files
        from landmarks.params import Backbone
        import torch
        determinism.prepare_inference()
        torch.manual_seed(0)
        views = torch.randint(256, (1, 224, 224, 3), dtype=torch.uint8)
        for name, layer in ("vgg16", "conv4"), ("tf_efficientnet_lite0", "last"):
            block = Backbone(name=name, weights="random", layer=layer, tail="none")
            trunk = networks.Trunk(weight_files.fetch(name, "random", 1), block)
            print(hashlib.sha256(features.forward(trunk, views).numpy()).hexdigest())
        pooled = networks.fix_order(torch.nn.Conv2d(288, 72, 1))(torch.rand(8, 288, 1, 1))
        print(hashlib.sha256(pooled.detach().numpy()).hexdigest())
    """
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa} | others,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa, others in (("AVX2", {}), ("DEFAULT", {}), ("SSE41", {"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "true"}))
    ]
    assert len(set(outputs)) == 1 and len(outputs[0].split()) == 3


def test_auto_picks_a_device_that_works() -> None:
    device = determinism.pick_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert determinism.pick_device("cpu") == torch.device("cpu")


def test_a_missing_device_is_an_error() -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = next(name for name, usable in available.items() if not usable)
    with user_error(rf"compute\.device: .*{name}"):
        determinism.pick_device(name)


def test_streams_do_not_depend_on_each_other() -> None:
    """Drawing more in one place changes nothing in another."""
    before = numbers(1, "b")
    np.random.seed(0)
    determinism.stream(1, "a").random(100)
    assert numbers(1, "b") == before
