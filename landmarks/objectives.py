"""What is minimised, and how the branches' scores become one answer."""

import math

from landmarks.models import Output
from landmarks.params import Abn

import torch
from torch import Tensor
from torch.nn import functional as F


def loss(output: Output, labels: Tensor, abn: Abn | None) -> Tensor:
    """The mean loss of a batch, a scalar. `abn` is None for a model without attention.

    branches (arXiv 1812.10025, eq. 3):  alpha * CE(attention) + beta * CE(perception).
    summed_softmax (the study's code):   CE(alpha * softmax(attention) + beta * softmax(perception)). Cross-entropy
    takes the softmax of these probabilities once more. So the loss cannot fall below `floor`, and its gradient
    (`logit_gradient_norm`) vanishes both where the answer is right and where it is confidently wrong.
    """
    if abn is None:
        return F.cross_entropy(output.perception, labels)
    if abn.objective == "summed_softmax":
        return F.cross_entropy(weighted_sum(output, abn), labels)
    # A branch of weight 0 is left out, so that a loss of infinity there cannot turn the sum into NaN.
    branches = ((abn.alpha, output.attention), (abn.beta, output.perception))
    return sum(weight * F.cross_entropy(logits, labels) for weight, logits in branches if weight)


def probabilities(output: Output, abn: Abn | None) -> Tensor:
    """The answer at inference, [N, K]: both branches' probabilities, weighted like the loss (as in the study)."""
    if abn is None:
        return output.perception.softmax(1)
    return weighted_sum(output, abn) / (abn.alpha + abn.beta)


def weighted_sum(output: Output, abn: Abn) -> Tensor:
    """alpha * softmax(attention) + beta * softmax(perception), [N, K]."""
    return abn.alpha * output.attention.softmax(1) + abn.beta * output.perception.softmax(1)


def floor(abn: Abn, classes: int) -> float:
    """The least that summed_softmax can be: all weight on the right class, ln(1 + (K - 1) / e**(alpha + beta))."""
    return math.log(1 + (classes - 1) / math.exp(abn.alpha + abn.beta))


def logit_gradient_norm(truth: Tensor, abn: Abn, classes: int) -> Tensor:
    """The norm of the loss's gradient with respect to the logits of the perception branch, [N].

    For N pictures whose true class has probability `truth` in that branch, 0..1, and one other class the rest. The
    attention branch is undecided.
    """
    shares = torch.zeros(len(truth), classes, dtype=torch.float64)
    shares[:, 0], shares[:, 1] = truth, 1 - truth
    logits = shares.clamp(min=1e-12).log().requires_grad_()
    output = Output(logits, torch.zeros_like(shares))
    labels = torch.zeros(len(truth), dtype=torch.long)
    (gradient,) = torch.autograd.grad(loss(output, labels, abn) * len(truth), logits)
    return gradient.norm(dim=1)
