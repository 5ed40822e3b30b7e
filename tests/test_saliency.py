"""Class activation maps, against models whose decisive cells are known."""

from landmarks import models, saliency
from landmarks.models import AttentionBranchNetwork

import pytest
import torch
from conftest import VGG, abn, design, tailed
from torch.nn import functional as F


def test_gradient_maps_show_the_cell_that_decides() -> None:
    """The classifier sees one cell, and only its evidence for the class counts."""
    model = models.build(design()).eval()
    keep = torch.zeros(8, 4)
    keep[:, 2] = 1
    with torch.no_grad():
        model.classifier[1].weight.abs_().mul_(keep.flatten())
        model.classifier[4].weight.abs_()
        model.classifier[7].weight.copy_(torch.tensor([[1.0], [-1.0], [-2.0]]).expand_as(model.classifier[7].weight))
    features = torch.full((2, 8, 2, 2), 0.1)
    features[:, :, 1, 0] = 3
    for values in saliency.maps(model, features)[1].values():
        assert torch.equal(values.flatten(1).argmax(1), torch.tensor([2, 2])) and values.max() == 1


def test_grad_cam_equals_its_equations() -> None:
    activations, gradient = torch.rand(3, 8, 2, 2), torch.randn(3, 8, 2, 2)
    for picture in range(3):
        a, g = activations[picture], gradient[picture]
        plain = sum(g[k].mean() * a[k] for k in range(8)).relu()
        assert torch.allclose(saliency.grad_cam(activations, gradient)[picture], plain, atol=1e-6)
        weights = [(g[k] ** 2 / (2 * g[k] ** 2 + a[k].sum() * g[k] ** 3) * g[k].relu()).sum() for k in range(8)]
        weighted = sum(w * a[k] for k, w in enumerate(weights)).relu()
        assert torch.allclose(saliency.grad_cam_pp(activations, gradient)[picture], weighted, rtol=1e-3)


def test_a_gradient_of_zero_gives_a_map_that_prefers_nothing() -> None:
    zero = torch.zeros(1, 8, 2, 2)
    for compute in (saliency.grad_cam, saliency.grad_cam_pp):
        assert torch.equal(saliency.enlarge(compute(zero + 1, zero), torch.Size((4, 4))), torch.ones(1, 4, 4))


def test_the_mean_of_a_class_activation_map_is_the_score() -> None:
    model = models.build(design(abn())).eval()
    assert isinstance(model, AttentionBranchNetwork)
    torch.nn.init.constant_(model.scores[0].bias, 1)  # all evidence is positive
    features = torch.rand(5, 8, 2, 2)
    output = model(features)
    answers = model.probabilities(output).argmax(1)
    evidence = model.scores[0](model.evidence(model.standardise(features)))[torch.arange(5), answers]
    expected = evidence / evidence.amax((1, 2), keepdim=True)
    assert torch.allclose(saliency.maps(model, features)[1]["cam"], expected, atol=1e-6)
    assert torch.allclose(evidence.mean((1, 2)), output.attention[torch.arange(5), answers], atol=1e-6)


def test_only_a_head_that_averages_all_cells_has_a_class_activation_map() -> None:
    study, features = abn(objective="summed_softmax"), torch.rand(1, 8, 2, 2)
    assert set(saliency.maps(models.build(design(study)).eval(), features)[1]) == {"grad_cam", "grad_cam_pp"}
    assert set(saliency.maps(models.build(design()).eval(), features)[1]) == {"grad_cam", "grad_cam_pp"}


@pytest.mark.slow
@pytest.mark.parametrize("block", [None, abn()])
def test_with_a_tail_the_map_is_of_its_output(block: object) -> None:
    model = models.build(design(block, shape=(256, 8, 8), hidden=16, tail=tailed(VGG))).eval()
    features = torch.rand(2, 256, 8, 8)
    output = model(features)
    kept = model.tail[0](model.weighted_input(features, output.map)).detach().requires_grad_()
    logits = model.classifier(model.tail[1](kept))
    answers = model.probabilities(output).argmax(1)
    (gradient,) = torch.autograd.grad(logits[torch.arange(2), answers].sum(), kept)
    small = saliency.grad_cam(kept, gradient)
    large = F.interpolate(small[:, None], (8, 8), mode="bilinear")[:, 0]
    found = saliency.maps(model, features)[1]["grad_cam"]
    assert torch.allclose(found * large.amax((1, 2), keepdim=True), large, atol=1e-6)
