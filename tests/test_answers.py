"""What a model answers, and its deletion and insertion curves, against the model itself."""

from landmarks import answers, models, saliency
from landmarks.attention import centre_prior
from landmarks.models import AttentionBranchNetwork
from landmarks.training import Features

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VGG, abn, design, tailed
from torch import Tensor


def test_cells_are_ranked_by_score_then_in_row_order() -> None:
    assert answers.rank_cells(np.array([[[0.1, 0.9], [0.5, 0.9]]])).tolist() == [[1, 3, 2, 0]]


def test_the_centre_comes_first_and_the_corners_last() -> None:
    order = answers.rank_cells(centre_prior(7, 7)[None])[0].tolist()
    assert order[0] == 24 and set(order[1:5]) == {17, 23, 25, 31} and set(order[-4:]) == {0, 6, 42, 48}


def network(attention: str = "residual", hidden: int = 64) -> AttentionBranchNetwork:
    """A model of 8 x 2 x 2 features whose mean is not 0 and whose standard deviation is not 1."""
    model = models.build(design(abn(attention=attention), hidden=hidden)).eval()
    model.mean, model.std = torch.rand(8, 1, 1), torch.rand(8, 1, 1) + 0.5
    return model


def some_features(count: int) -> Tensor:
    return torch.rand(count, 8, 2, 2, generator=torch.Generator().manual_seed(3)) * 4


@pytest.mark.parametrize(("kind", "hidden"), [("residual", 64), ("multiply", 64), ("residual", 0)])
def test_curves_equal_the_classifier_on_the_remaining_cells(kind: str, hidden: int) -> None:
    model, features, labels = network(kind, hidden), some_features(5), torch.tensor([0, 1, 2, 1, 0])
    order = np.random.default_rng(4).permuted(np.tile(np.arange(4), (5, 1)), axis=1)
    with torch.inference_mode():
        attention_map = model(features).map
        orders = {"one": order, "reversed": order[:, ::-1].copy()}
        (deletion, insertion), reverse = answers.curves(model, features, attention_map, labels, orders).values()
        assert np.allclose(reverse[1], deletion[:, ::-1], atol=1e-5), (
            "inserting in reverse order is the same as deleting"
        )
        seen = model.weighted_input(features, attention_map)
        for count in range(5):
            gone = torch.zeros(5, 4, dtype=torch.bool)
            gone.scatter_(1, torch.from_numpy(order[:, :count].copy()), torch.ones(5, count, dtype=torch.bool))
            gone = gone.view(5, 1, 2, 2)
            for found, cells in ((deletion, seen * ~gone), (insertion, seen * gone)):
                expected = model.classifier(cells).softmax(1).gather(1, labels[:, None])[:, 0]
                assert found[:, count] == pytest.approx(expected.numpy(), abs=1e-5)
    assert deletion.shape == insertion.shape == (5, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "multiply"])
def test_curves_through_a_tail(kind: str) -> None:
    """The same through the rest of the backbone, where removed cells have the mean of the training features."""
    block = abn(attention=kind)
    model = models.build(design(block, shape=(256, 4, 4), hidden=16, tail=tailed(VGG))).eval()
    model.mean = torch.rand(256, 1, 1)
    features, labels = torch.rand(3, 256, 4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2])
    order = np.random.default_rng(4).permuted(np.tile(np.arange(16), (3, 1)), axis=1)
    with torch.inference_mode():
        attention_map = model(features).map
        (pair,) = answers.curves(model, features, attention_map, labels, {"one": order}).values()
        assert pair.shape == (2, 3, answers.TAIL_STEPS + 1)
        for step, count in ((0, 0), (3, 7), (answers.TAIL_STEPS, 16)):
            gone = torch.zeros(3, 16, dtype=torch.bool)
            gone.scatter_(1, torch.from_numpy(order[:, :count].copy()), torch.ones(3, count, dtype=torch.bool))
            gone = gone.view(3, 1, 4, 4)
            for found, away in zip(pair, (gone, ~gone), strict=True):
                cells = torch.where(away, model.mean.expand_as(features), features)
                weights = 1 + attention_map if kind == "residual" else attention_map
                expected = model.classifier(model.tail(weights * cells)).softmax(1)[torch.arange(3), labels]
                assert found[:, step] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.ptp(pair) > 1e-3


@pytest.mark.parametrize("cells", [4, 16, 49, 196])
def test_the_steps_of_a_curve_go_from_no_cells_to_all(cells: int) -> None:
    """One cell per step, or few steps with a tail. The area under a straight line is a half in both cases."""
    for base, steps in ((None, cells), (tailed(VGG), min(cells, answers.TAIL_STEPS))):
        model = models.build(design(abn(), 2, shape=(256, 4, 4), hidden=8, tail=base))
        counts = answers.step_sizes(model, cells)
        assert len(counts) == steps + 1 and counts[0] == 0 and counts[-1] == cells and (np.diff(counts) >= 1).all()
        assert np.trapezoid(counts / cells, counts / cells) == pytest.approx(0.5)


def test_a_map_of_the_decisive_cell_has_good_curves() -> None:
    """The model uses one cell only; removing or restoring it first changes the prediction at once."""
    model = network()
    first, last = model.classifier[1], model.classifier[-1]
    keep = torch.zeros(8, 4)
    keep[:, 2] = 1
    with torch.no_grad():
        first.weight.copy_(first.weight * 20 * keep.flatten())
        last.weight.mul_(20)
        data = some_features(60)
        labels = model(data).perception.argmax(1)
    rows = pd.DataFrame({"row": np.arange(60), "label": labels.numpy()})
    maps = np.zeros((60, 2, 2), dtype=np.float32)
    maps[:, 1, 0] = 1
    found = answers.areas(model, Features(data.numpy(), rows), {"map": maps}, np.random.default_rng(0))
    mean = {name: values.mean() for name, values in found.items()}
    assert mean["deletion_map"] < mean["deletion_random"] - 0.1
    assert mean["insertion_map"] > mean["insertion_random"] + 0.1


def views(count: int) -> pd.DataFrame:
    rows = np.arange(count)
    return pd.DataFrame({"split": "val", "id": [f"id-{n}" for n in rows], "label": rows % 3, "row": rows})


def test_answers_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CURVES", 3)
    model, features = network(), some_features(6)
    found = answers.answers(model, features.numpy(), views(6), 0)
    output = model(features)
    assert np.allclose(np.stack(found["scores"]), model.probabilities(output).detach())
    assert np.allclose(np.stack(found["map"]), output.map.detach().flatten(1))
    assert found["truth"].tolist() == pytest.approx(output.perception.softmax(1)[range(6), views(6)["label"]].tolist())
    assert found["attention"].tolist() == output.attention.argmax(1).tolist()
    for name, values in saliency.maps(model, features)[1].items():
        assert np.allclose(np.stack(found[name]), values.flatten(1))
    orders = ("map", "grad_cam", "grad_cam_pp", "cam", "centre", "random")
    curves = [f"{curve}_{order}" for curve in ("deletion", "insertion") for order in orders]
    assert list(found.columns[-12:]) == curves
    assert found[curves].notna().all(axis=1).tolist() == [True, False, True, False, False, True], "evenly spread"


def test_a_model_without_attention_has_only_maps_of_its_gradient() -> None:
    found = answers.answers(models.build(design()), some_features(4).numpy(), views(4), 0)
    assert list(found)[:8] == ["split", "id", "label", "scores", "truth", "perception", "grad_cam", "grad_cam_pp"]
    assert "deletion_grad_cam" in found and "deletion_map" not in found
