"""The kernels of training: what they compute, and that every processor computes the same bits."""

import os
import platform
import subprocess
import sys
from typing import NamedTuple

from landmarks import kernels
from landmarks.kernels import Pair

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.nn.functional import relu
from torch.nn.modules.utils import _pair
from torch.profiler import profile


class Case(NamedTuple):
    inputs: tuple[int, int, int, int]
    outputs: int
    kernel: int | Pair = 3
    stride: int | Pair = 1
    padding: int | Pair = 1
    dilation: int | Pair = 1
    groups: int = 1


CASES = [
    pytest.param(Case((5, 24, 7, 7), 40), id="3x3"),
    pytest.param(Case((5, 300, 7, 7), 320), id="long sums"),
    pytest.param(Case((40, 16, 14, 14), 20), id="long sums of positions"),
    pytest.param(Case((3, 24, 7, 8), 10, stride=2), id="stride"),
    pytest.param(Case((3, 24, 8, 7), 10, padding=2, dilation=2), id="dilation"),
    pytest.param(Case((3, 24, 9, 9), 10, kernel=5, padding=2), id="5x5"),
    pytest.param(Case((3, 24, 9, 12), 10, (1, 5), (2, 1), (0, 2), (1, 2)), id="wide"),
    pytest.param(Case((3, 24, 12, 9), 10, (3, 1), (1, 2), (1, 0)), id="high"),
    pytest.param(Case((3, 24, 9, 9), 10, stride=2, padding=2, dilation=2), id="stride and dilation"),
    pytest.param(Case((3, 24, 7, 7), 10, kernel=1), id="1x1 with padding"),
    pytest.param(Case((3, 24, 7, 7), 10, padding=0), id="without padding"),
    pytest.param(Case((25, 24, 7, 7), 10, kernel=1, padding=0), id="1x1"),
    pytest.param(Case((3, 24, 7, 7), 10, kernel=1, padding=0, stride=2), id="1x1 with stride"),
    pytest.param(Case((3, 24, 7, 7), 1, kernel=1, padding=0), id="one output"),
    pytest.param(Case((4, 24, 1, 1), 6, kernel=1, padding=0), id="one position"),
    pytest.param(Case((1, 8, 7, 7), 6), id="one picture"),
    pytest.param(Case((3, 1, 7, 7), 6), id="one channel"),
    pytest.param(Case((3, 48, 7, 7), 48, groups=48), id="depthwise"),
    pytest.param(Case((3, 48, 7, 7), 48, stride=2, groups=48), id="depthwise with stride"),
    pytest.param(Case((3, 8, 7, 7), 8, groups=8), id="depthwise, few channels"),
    pytest.param(Case((3, 16, 7, 7), 32, groups=4), id="groups"),
]


def results(case: Case, biased: bool, portable: bool) -> dict[str, Tensor]:
    """The output and the gradients for random inputs."""
    generator = torch.Generator().manual_seed(0)
    _, outputs, kernel, stride, padding, dilation, groups = case
    shapes = {
        "inputs": case.inputs,
        "weight": (outputs, case.inputs[1] // groups, *_pair(kernel)),
        "bias": (outputs,),
    }
    tensors = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    inputs, weight, bias = tensors.values()
    if not biased:
        del tensors["bias"]
    conv2d = kernels.conv2d if portable else kernels.torch_conv2d
    output = conv2d(inputs, weight, bias if biased else None, stride, padding, dilation, groups)
    gradient = torch.randn(output.shape, generator=generator)
    return {"output": output} | dict(
        zip(tensors, torch.autograd.grad(output, list(tensors.values()), gradient), strict=True)
    )


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_torch(case: Case, biased: bool) -> None:
    ours, reference = results(case, biased, True), results(case, biased, False)
    assert ours.keys() == reference.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-4, atol=1e-5 * reference[name].abs().max().item())


def test_inputs_that_are_not_portable_are_left_to_torch() -> None:
    inputs, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for one, two, padding in ((inputs.double(), weight.double(), 1), (inputs[0], weight, 1), (inputs, weight, "same")):
        assert torch.equal(kernels.conv2d(one, two, padding=padding), kernels.torch_conv2d(one, two, padding=padding))
    inputs, weight = torch.randn(3, 8), torch.randn(4, 8)
    for one, two in ((inputs.double(), weight.double()), (inputs[0], weight)):
        assert torch.equal(kernels.linear(one, two), kernels.torch_linear(one, two))


def test_gradients_are_computed_only_where_they_are_needed() -> None:
    inputs, weight = torch.randn(2, 8, 7, 7), torch.randn(8, 8, 3, 3).requires_grad_()
    with profile() as calls:
        kernels.conv2d(inputs, weight, padding=1).sum().backward()
    assert inputs.grad is None and weight.grad is not None
    assert "aten::convolution_backward" not in [call.name for call in calls.events()]  # it gives those of the inputs
    with torch.inference_mode():
        assert not kernels.conv2d(inputs, weight, padding=1).requires_grad
    inputs, weight = torch.randn(2, 8), torch.randn(3, 8).requires_grad_()
    with profile() as calls:
        kernels.linear(inputs, weight).sum().backward()
    assert inputs.grad is None and weight.grad is not None
    assert [call.name for call in calls.events()].count("mkldnn::_linear_pointwise") == 2


def test_a_gradient_of_a_gradient_is_refused() -> None:
    inputs, weight = torch.randn(2, 8).requires_grad_(), torch.randn(3, 8).requires_grad_()
    (first,) = torch.autograd.grad(kernels.linear(inputs, weight).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "shape", [(64, 60, 7), (5, 1300, 40), (700, 8, 6), (2, 2, 30, 600), (1, 8, 6), (3, 1, 1)], ids=str
)
def test_a_linear_layer_is_that_of_torch(shape: tuple[int, ...], biased: bool) -> None:
    """`shape`: that of the inputs, then the number of outputs."""
    *pictures, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(*pictures, inputs), (outputs, inputs), (outputs,)][: 2 + biased]
    tensors = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    gradient = torch.randn(*pictures, outputs, generator=generator)
    # Such an activation follows in the classifier; autograd refuses to change a view.
    found = [relu(linear(*tensors), inplace=True) for linear in (kernels.linear, kernels.torch_linear)]
    assert found[0].is_contiguous()
    ours, reference = ([output, *torch.autograd.grad(output, tensors, gradient)] for output in found)
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


TRAIN = """
import hashlib, sys
from landmarks import kernels, models, networks, weight_files
from landmarks.params import Abn, Backbone, Train
from landmarks.training import Features, fit, prepare_training
import numpy as np, pandas as pd, torch

prepare_training()
content, generator = hashlib.sha256(), torch.Generator().manual_seed(0)
for length in (2, 7, 64, 65, 300, 511, 512, 513, 640, 1023, 1024, 1025, 1100, 2048):
    for rows, columns in ((2, 3), (5, 64), (64, 512), (33, 48)):
        one, two = torch.randn(rows, length, generator=generator), torch.randn(length, columns, generator=generator)
        for product in (kernels.product(one, two.t()), kernels.product(one, two.t().contiguous())):
            content.update(product.contiguous().numpy().tobytes())
print(content.hexdigest())
content = hashlib.sha256()
for channels in (24, 64, 200):
    for kernel, stride, padding, dilation in ((1, 1, 1, 1), (1, 2, 1, 1), (3, 2, 2, 2), (3, 2, 1, 2), (3, 2, 1, 1)):
        inputs = torch.randn(6, channels, 14, 14, generator=generator).requires_grad_()
        weight = torch.randn(48, channels, kernel, kernel, generator=generator).requires_grad_()
        output = kernels.conv2d(inputs, weight, None, stride, padding, dilation)
        gradient = torch.randn(output.shape, generator=generator)
        for tensor in (output, *torch.autograd.grad(output, (inputs, weight), gradient)):
            content.update(tensor.detach().contiguous().numpy().tobytes())
print(content.hexdigest())
for arguments in sys.argv[1:]:
    name, layer, channels, side = arguments.split(",")
    shape = int(channels), int(side), int(side)
    array = np.random.default_rng(0).random((13, *shape)).astype(np.float16)
    pictures = Features(array, pd.DataFrame({"row": np.arange(13), "label": np.arange(13) % 3}))
    tail = Backbone(name=name, weights="random", layer=layer, tail="trained") if layer else None
    abn = Abn(alpha=1, beta=1, branch="study", attention="residual", objective="branches")
    design = models.Design(landmarks=list("abc"), shape=shape, hidden=64, dropout=0.1, abn=abn, seed=0, tail=tail)
    settings = {"repeats": 1, "epochs": 1, "batch_size": 8, "optimizer": "adamw", "learning_rate": 1e-3}
    train = Train(**settings, weight_decay=0, hidden=64, dropout=0.1)
    model = models.build(design)
    if tail:
        networks.load(model.tail[0], weight_files.fetch(name, "random", 0))
    list(fit(model, [pictures], pictures, train, 0, lambda: None))
    content = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    print(hashlib.sha256(content).hexdigest())
"""


CASES_OF_TRAINING = {
    "vgg16": "vgg16,,512,7",
    "vgg16, tail": "vgg16,conv4,512,7",
    "efficientnet, tail": "tf_efficientnet_lite0,level4,112,7",
    "mobilenet, tail": "mobilenetv3_small_050,level3,16,14",
}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is x86-64's")
def test_training_does_not_depend_on_the_width_of_vectors() -> None:
    """On a processor without AVX-512 both runs are the same, and cannot fail."""

    def run(width: str, threads: str) -> dict[str, str]:
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": width, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", TRAIN, *CASES_OF_TRAINING.values()]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(zip(["matrix products", "convolutions", *CASES_OF_TRAINING], done.stdout.split(), strict=True))

    assert run("AVX2", "2") == run("DEFAULT", "1")
