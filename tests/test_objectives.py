"""The loss and the answer of a model with one or two branches."""

import math

from landmarks import models
from landmarks.models import Output
from landmarks.objectives import floor, logit_gradient_norm
from landmarks.params import Abn

import numpy as np
import pytest
import torch
from conftest import abn, design
from torch import Tensor

# Two pictures, three classes. exp() of the logits are small integers, so that the softmaxes are easy to see.
PERCEPTION = torch.log(torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]))  # softmax: 1/4 1/2 1/4 and 3/4 1/8 1/8
ATTENTION = torch.log(torch.tensor([[1.0, 3.0, 4.0], [1.0, 1.0, 2.0]]))  # softmax: 1/8 3/8 1/2 and 1/4 1/4 1/2
LABELS = torch.tensor([1, 0])
OUTPUT = Output(PERCEPTION, ATTENTION)
CE_PERCEPTION = -(math.log(1 / 2) + math.log(3 / 4)) / 2
CE_ATTENTION = -(math.log(3 / 8) + math.log(1 / 4)) / 2
WEIGHTS = [(0.25, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0), (0.0, 3.0)]


def perfect(classes: int, margin: float = 100.0) -> tuple[Tensor, Tensor]:
    """Logits that name the right class without a doubt, and the labels."""
    labels = torch.arange(classes)
    return torch.nn.functional.one_hot(labels).float() * margin, labels


def loss(output: Output, labels: Tensor, block: Abn | None) -> Tensor:
    return models.build(design(block)).loss(output, labels)


def probabilities(output: Output, block: Abn | None) -> Tensor:
    return models.build(design(block)).probabilities(output)


def test_without_attention_the_loss_is_cross_entropy() -> None:
    assert loss(Output(PERCEPTION), LABELS, None).item() == pytest.approx(CE_PERCEPTION)


@pytest.mark.parametrize(("alpha", "beta"), WEIGHTS)
def test_branches_is_the_weighted_sum_of_two_cross_entropies(alpha: float, beta: float) -> None:
    expected = alpha * CE_ATTENTION + beta * CE_PERCEPTION
    assert loss(OUTPUT, LABELS, abn(alpha=alpha, beta=beta)).item() == pytest.approx(expected)


def test_alpha_0_and_beta_1_is_the_baselines_loss_to_the_bit() -> None:
    assert torch.equal(loss(OUTPUT, LABELS, abn(alpha=0.0)), loss(OUTPUT, LABELS, None))
    assert torch.equal(probabilities(OUTPUT, abn(alpha=0.0)), probabilities(OUTPUT, None))


def test_a_branch_of_weight_0_does_not_affect_the_loss() -> None:
    broken = Output(PERCEPTION, torch.full_like(ATTENTION, math.nan))
    assert loss(broken, LABELS, abn(alpha=0.0)).item() == pytest.approx(CE_PERCEPTION)


def test_summed_softmax_is_the_cross_entropy_of_summed_probabilities() -> None:
    scores = [[1 / 32 + 1 / 4, 3 / 32 + 1 / 2, 1 / 8 + 1 / 4], [1 / 16 + 3 / 4, 1 / 16 + 1 / 8, 1 / 8 + 1 / 8]]
    expected = sum(
        math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(scores, LABELS.tolist(), strict=True)
    )
    assert loss(OUTPUT, LABELS, abn(objective="summed_softmax")).item() == pytest.approx(expected / 2)


@pytest.mark.parametrize("classes", [3, 27])
@pytest.mark.parametrize(("alpha", "beta"), WEIGHTS)
def test_only_summed_softmax_has_a_floor(alpha: float, beta: float, classes: int) -> None:
    logits, labels = perfect(classes)
    output = Output(logits, logits)
    study = abn(alpha=alpha, beta=beta, objective="summed_softmax")
    least = math.log(1 + (classes - 1) / math.exp(alpha + beta))
    assert loss(output, labels, study).item() == pytest.approx(least) == pytest.approx(floor(study, classes))
    assert loss(output, labels, abn(alpha=alpha, beta=beta)).item() == pytest.approx(0, abs=1e-6)


def test_the_studys_floor() -> None:
    """Perception alone, 27 classes: 2.36, where chance is 3.30."""
    logits, labels = perfect(27)
    study = abn(alpha=0.0, objective="summed_softmax")
    assert loss(Output(logits, logits), labels, study).item() == pytest.approx(2.36, abs=0.005)
    undecided = torch.zeros(27, 27)
    assert loss(Output(undecided, undecided), labels, study).item() == pytest.approx(math.log(27))


@pytest.mark.parametrize("margin", [0.0, 1.0, -5.0], ids=["undecided", "nearly right", "wrong"])
def test_the_gradient_of_summed_softmax_almost_vanishes(margin: float) -> None:
    def gradient(objective: str) -> float:
        logits, labels = perfect(27, margin)
        logits.requires_grad_()
        loss(Output(logits, logits), labels, abn(objective=objective)).backward()
        return logits.grad.norm().item()

    assert gradient("branches") > 0
    assert gradient("summed_softmax") < gradient("branches") / 10


def test_the_logit_gradient_norm_is_that_of_the_loss() -> None:
    truth = np.array([1e-3, 0.25, 0.5, 0.999])
    shares = torch.zeros(4, 27, dtype=torch.float64)
    shares[:, 0], shares[:, 1] = torch.from_numpy(truth), torch.from_numpy(1 - truth)
    for block in (abn(), abn(beta=2.0), abn(objective="summed_softmax"), abn(beta=2.0, objective="summed_softmax")):
        logits = shares.clamp(min=1e-12).log().requires_grad_()
        (4 * loss(Output(logits, torch.zeros(4, 27)), torch.zeros(4, dtype=torch.long), block)).backward()
        assert logit_gradient_norm(truth, block, 27) == pytest.approx(logits.grad.norm(dim=1).numpy(), rel=1e-6)


def test_large_weights_do_not_overflow() -> None:
    study = abn(alpha=1000.0, beta=1000.0, objective="summed_softmax")
    assert floor(study, 27) == 0
    assert np.isfinite(logit_gradient_norm(np.array([0.0, 0.5, 1.0]), study, 27)).all()


def test_the_logit_gradient_norm_of_cross_entropy() -> None:
    """Cross-entropy's gradient is p - 1 for the true class and 1 - p for the other one."""
    truth = np.array([0.0, 0.25, 0.5, 1.0])
    expected = math.sqrt(2) * (1 - truth)
    assert logit_gradient_norm(truth, abn(alpha=0.0), 27) == pytest.approx(expected, abs=1e-6)
    assert logit_gradient_norm(truth, abn(beta=2.0), 27) == pytest.approx(2 * expected, abs=1e-6)


def test_a_confident_mistake_has_no_gradient_in_the_studys_loss() -> None:
    study, truth = abn(objective="summed_softmax"), np.array([0.0, 1e-3, 0.5, 1.0])
    sure, nearly, half, right = logit_gradient_norm(truth, study, 27)
    assert sure == pytest.approx(0, abs=1e-6) and right == pytest.approx(0, abs=1e-6)
    assert nearly < half / 100, "if it were small everywhere, an optimiser could rescale it"
    assert logit_gradient_norm(truth, abn(), 27)[0] > 1.4


BLOCKS = [
    None,
    *(abn(alpha=alpha, beta=beta) for alpha, beta in WEIGHTS),
    abn(objective="summed_softmax"),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_probabilities_sum_to_1(block: Abn | None) -> None:
    answer = probabilities(OUTPUT, block)
    assert answer.shape == (2, 3) and (answer >= 0).all()
    assert answer.sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("alpha", "beta", "first"),
    [(0.0, 1.0, [1 / 4, 1 / 2, 1 / 4]), (1.0, 0.0, [1 / 8, 3 / 8, 1 / 2]), (1.0, 1.0, [3 / 16, 7 / 16, 3 / 8])],
    ids=["perception", "attention", "both"],
)
def test_the_answer_weights_the_branches_like_the_loss(alpha: float, beta: float, first: list[float]) -> None:
    assert probabilities(OUTPUT, abn(alpha=alpha, beta=beta))[0].tolist() == pytest.approx(first)
