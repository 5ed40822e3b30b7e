"""The classifier and the Attention Branch Network: shapes, gradients, and how the two are related."""

import math
from pathlib import Path

from landmarks import models
from landmarks.models import Baseline
from landmarks.params import Abn, Backbone
from landmarks.stage import UserError

import pytest
import torch
from conftest import LITE, VGG, abn, design, tailed
from torch import Tensor

BLOCKS = [None, abn(), abn(attention="multiply"), abn(alpha=0.0), abn(objective="summed_softmax")]


TAILS = [pytest.param(tailed(base), shape, id=base.name) for base, shape in ((VGG, (256, 8, 8)), (LITE, (112, 4, 4)))]


def features(count: int = 4) -> Tensor:
    return torch.rand(count, 8, 2, 2, generator=torch.Generator().manual_seed(1)) * 4


def with_map(model: Baseline, value: float) -> Baseline:
    """Sets the bias of the last normalisation so that the attention map is `value` (0 or 1) everywhere."""
    norm = model.map[1]
    torch.nn.init.zeros_(norm.weight)
    torch.nn.init.constant_(norm.bias, 200.0 if value else -200.0)
    return model


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("classes", [2, 27])
def test_outputs_have_their_shapes_and_no_nan(block: Abn | None, classes: int) -> None:
    output = models.build(design(block, classes))(features())
    assert output.perception.shape == (4, classes) and output.perception.isfinite().all()
    if block is None:
        assert output.attention is None and output.map is None
    else:
        assert output.attention.shape == (4, classes) and output.attention.isfinite().all()
        assert output.map.shape == (4, 1, 2, 2) and (output.map >= 0).all() and (output.map <= 1).all()


def test_a_map_of_another_shape() -> None:
    wide = design(abn(), shape=(8, 3, 5))
    assert models.build(wide)(torch.rand(2, 8, 3, 5)).map.shape == (2, 1, 3, 5)


@pytest.mark.parametrize("objective", ["branches", "summed_softmax"])
@pytest.mark.parametrize(
    ("alpha", "beta", "without"),
    [(0.25, 1.0, ()), (0.0, 1.0, ("scores",)), (1.0, 0.0, ("classifier", "map"))],
    ids=["both", "alpha 0", "beta 0"],
)
def test_gradients_reach_only_the_branches_that_have_a_loss(
    objective: str, alpha: float, beta: float, without: tuple[str, ...]
) -> None:
    """With alpha 0 the map learns through perception; with beta 0 the branch learns without it."""
    block = abn(alpha=alpha, beta=beta, objective=objective)
    model = models.build(design(block)).train()
    model.loss(model(features(8)), torch.arange(8) % 3).backward()
    for part, module in model.named_children():
        moved = [p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()]
        assert any(moved) is (part not in without), part
    if not without:
        # The bias before a normalisation is the one parameter that nothing depends on.
        still = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7}
        assert still <= {"map.0.bias", "evidence.2.bias"}


def test_every_parameter_of_the_baseline_gets_a_gradient() -> None:
    model = models.build(design())
    model.loss(model(features(8)), torch.arange(8) % 3).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("attention", "value"), [("residual", 0.0), ("multiply", 1.0)])
def test_attention_without_effect_equals_the_baseline(attention: str, value: float) -> None:
    network = with_map(models.build(design(abn(attention=attention))), value).eval()
    baseline = models.build(design()).eval()
    output = network(features())
    assert (output.map == value).all()
    assert torch.equal(output.perception, baseline(features()).perception)


@pytest.mark.parametrize(("attention", "value", "factor"), [("residual", 1.0, 2.0), ("multiply", 0.0, 0.0)])
def test_the_map_weights_the_classifier_input(attention: str, value: float, factor: float) -> None:
    network = with_map(models.build(design(abn(attention=attention))), value).eval()
    baseline = models.build(design()).eval()
    assert torch.allclose(network(features()).perception, baseline(factor * features()).perception, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 7, 7), (8, 3, 5)])
def test_the_studys_head(shape: tuple[int, int, int]) -> None:
    """AvgPool2d(7, 1, 3) and Linear(K * H * W, K), for 27 classes and 7 x 7 cells Linear(1323, 27)."""
    model = models.build(design(abn(objective="summed_softmax"), 27, shape=shape)).eval()
    convolution, pool, _, linear = model.scores
    assert (pool.kernel_size, pool.stride, pool.padding) == (7, 1, 3)
    assert (linear.in_features, linear.out_features) == (27 * shape[1] * shape[2], 27)
    features = torch.rand(2, *shape)
    expected = linear(pool(convolution(model.evidence(features))).flatten(1))
    assert torch.equal(model(features).attention, expected)


def test_the_papers_head_averages_over_all_cells() -> None:
    model = models.build(design(abn())).eval()
    expected = model.scores[0](model.evidence(features())).mean((2, 3))
    assert torch.allclose(model(features()).attention, expected, atol=1e-6)


@pytest.mark.parametrize("block", [None, abn(alpha=1.0, beta=0.0), abn(alpha=0.0), abn(objective="summed_softmax")])
def test_the_initial_loss_is_that_of_guessing(block: Abn | None) -> None:
    """It is ln K, on standardised features of about the real size."""
    model = models.build(design(block, 27, shape=(64, 7, 7), hidden=256)).train()
    labels = torch.arange(54) % 27
    features = torch.randn(54, 64, 7, 7, generator=torch.Generator().manual_seed(1))
    assert model.loss(model(features), labels).item() == pytest.approx(math.log(27), rel=0.02)


@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_without_hidden_layers_the_classifier_is_linear_in_the_average(block: Abn | None) -> None:
    model = models.build(design(block, shape=(256, 8, 8), hidden=0, tail=tailed(VGG))).eval()
    maps = torch.rand(4, 256, 8, 8, generator=torch.Generator().manual_seed(2))
    output, layer = model(maps), model.classifier[-1]
    mean = model.tail(model.weighted_input(maps, output.map)).mean((2, 3))
    assert torch.allclose(output.perception, mean @ layer.weight.T + layer.bias, atol=1e-6)
    assert sum(p.numel() for p in model.classifier.parameters()) == 3 * (512 + 1)


@pytest.mark.parametrize(("base", "shape"), TAILS)
def test_the_papers_branch_is_a_copy_of_the_tail_at_stride_1(base: Backbone, shape: tuple[int, int, int]) -> None:
    """It has the same layers and weights, and its map has the size of the features."""
    model = models.build(design(abn(branch="paper"), shape=shape, hidden=16, tail=base)).train()
    state = {f"features.{name}": tensor + 1 for name, tensor in model.tail[0].state_dict().items()}
    model.load_backbone(state)
    copied = model.evidence[0].state_dict()
    assert copied.keys() == model.tail[0].state_dict().keys()
    assert all(torch.equal(tensor, state[f"features.{name}"]) for name, tensor in copied.items())
    maps = torch.rand(6, *shape, generator=torch.Generator().manual_seed(2))
    output = model(maps)
    assert output.map.shape == (6, 1, *shape[1:]) and output.attention.shape == (6, 3)
    model.loss(output, torch.arange(6) % 3).backward()
    assert all(p.grad is not None for p in model.evidence.parameters())


def test_a_tail_that_cannot_keep_its_size_has_no_copy_at_stride_1() -> None:
    base = Backbone(name="convnext_atto", weights="random", layer="level3", tail="trained")
    with pytest.raises(UserError, match=r"abn\.branch: at stride 1, the tail of convnext_atto changes the size"):
        models.build(design(abn(branch="paper"), shape=(160, 4, 4), hidden=16, tail=base))


def test_a_crop_that_is_too_small_for_the_tail_is_an_error() -> None:
    base = Backbone(name="vgg16", weights="random", layer="conv3", tail="trained")
    with pytest.raises(UserError, match=r"augment\.crop: too small for the layers after backbone\.layer; raise it"):
        models.build(design(shape=(256, 2, 2), tail=base))


def test_features_are_standardised_first() -> None:
    plain, other = (models.build(design(abn())).eval() for _ in range(2))
    other.mean, other.std = torch.full((8, 1, 1), 3.0), torch.full((8, 1, 1), 4.0)
    assert torch.allclose(plain(features()).perception, other(features() * 4 + 3).perception, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_the_classifier_starts_the_same_with_and_without_attention(block: Abn) -> None:
    baseline, network = models.build(design()), models.build(design(block))
    own = network.classifier.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in baseline.classifier.state_dict().items())


def test_the_seed_determines_the_initial_weights() -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in models.build(design(abn(), seed=seed)).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def with_tail(base: Backbone, shape: tuple[int, int, int], block: Abn | None) -> Baseline:
    return models.build(design(block, shape=shape, hidden=16, tail=base))


@pytest.mark.parametrize(("base", "shape"), TAILS)
@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_a_tail_is_trained_with_the_model(base: Backbone, shape: tuple[int, int, int], block: Abn | None) -> None:
    """The tail is between the features and the classifier; the attention branch reads the features."""
    model = with_tail(base, shape, block).train()
    maps = torch.rand(6, *shape, generator=torch.Generator().manual_seed(2))
    output = model(maps)
    assert output.perception.shape == (6, 3)
    model.loss(output, torch.arange(6) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.tail.parameters())
    model.eval()
    if block:
        assert output.map.shape == (6, 1, *shape[1:])
        output = model(maps)
        assert torch.equal(output.perception, model.classifier(model.tail((1 + output.map) * maps)))
    else:
        assert torch.equal(model(maps).perception, model.classifier(model.tail(maps)))


@pytest.mark.parametrize(("base", "shape"), TAILS)
def test_with_a_tail_a_map_of_zeros_equals_the_baseline(base: Backbone, shape: tuple[int, int, int]) -> None:
    baseline = with_tail(base, shape, None).eval()
    network = with_map(with_tail(base, shape, abn()), 0.0).eval()
    network.tail.load_state_dict(baseline.tail.state_dict())
    maps = torch.rand(2, *shape)
    assert torch.equal(network(maps).perception, baseline(maps).perception)


@pytest.mark.parametrize(("base", "shape"), TAILS)
def test_a_saved_tail_is_loaded(tmp_path: Path, base: Backbone, shape: tuple[int, int, int]) -> None:
    model, maps = with_tail(base, shape, abn()).train(), torch.rand(4, *shape)
    model(maps)
    models.save(model, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded.design.tail == base
    for one, two in zip(model.eval()(maps), loaded.eval()(maps), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("block", BLOCKS[:3])
def test_a_saved_model_is_loaded(tmp_path: Path, block: Abn | None) -> None:
    model = models.build(design(block, dropout=0.5)).train()
    model(features())  # moves the statistics of the batch normalisation
    models.save(model, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded.design.landmarks == model.design.landmarks and loaded.design.abn == block
    for one, two in zip(model.eval()(features()), loaded.eval()(features()), strict=True):
        assert one is two is None or torch.equal(one, two)


def test_a_model_is_saved_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        models.save(models.build(design(abn())), tmp_path / name)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and set(one) == {"design.json", "model.safetensors"}
