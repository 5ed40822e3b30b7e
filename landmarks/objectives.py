"""The losses of the Attention Branch Network, and how its two branches give one answer.

Logits are [N, K], labels [N]. `abn` has the weights alpha (attention branch) and beta (perception branch).
"""

import math
from typing import TYPE_CHECKING

from landmarks.params import Abn

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def loss(perception: "Tensor", attention: "Tensor", labels: "Tensor", abn: Abn) -> "Tensor":
    """The mean loss of a batch of logits, a scalar.

    branches (arXiv 1812.10025, eq. 3):  alpha * CE(attention) + beta * CE(perception).
    summed_softmax (the study's code):   CE(alpha * softmax(attention) + beta * softmax(perception)). Cross-entropy
    applies a second softmax to these probabilities. Therefore the loss cannot fall below `floor`, and its gradient
    (`logit_gradient_norm`) vanishes both where the answer is right and where it is confidently wrong.
    """
    from torch.nn import functional as F  # imported here because plots do not need it

    if abn.objective == "summed_softmax":
        return F.cross_entropy(weighted_sum(perception, attention, abn), labels)
    # A branch of weight 0 is left out: 0 times an infinite loss would be NaN.
    branches = ((abn.alpha, attention), (abn.beta, perception))
    losses = [weight * F.cross_entropy(logits, labels) for weight, logits in branches if weight]
    return sum(losses[1:], losses[0])


def probabilities(perception: "Tensor", attention: "Tensor", abn: Abn) -> "Tensor":
    """The answer, [N, K]: both branches' probabilities with the weights of the loss, as in the study."""
    return weighted_sum(perception, attention, abn) / (abn.alpha + abn.beta)


def weighted_sum(perception: "Tensor", attention: "Tensor", abn: Abn) -> "Tensor":
    """alpha * softmax(attention) + beta * softmax(perception), [N, K]."""
    return abn.alpha * attention.softmax(1) + abn.beta * perception.softmax(1)


def floor(abn: Abn, classes: int) -> float:
    """The minimum of summed_softmax: ln(1 + (K - 1) / e**(alpha + beta)).

    Both branches then give the right class probability 1.
    """
    return math.log1p((classes - 1) * math.exp(-abn.alpha - abn.beta))


def logit_gradient_norm(truth: np.ndarray, abn: Abn, classes: int) -> np.ndarray:
    """The norm of the loss's gradient with respect to the logits of the perception branch, [N].

    `truth` [N] is the probability 0..1 that this branch gives to the true class of each picture. One other class has
    the rest. The attention branch gives all classes the same probability.
    """
    shares, right = np.zeros((len(truth), classes)), np.eye(classes)[0]
    shares[:, 0], shares[:, 1] = truth, 1 - truth
    if abn.objective == "branches":
        return abn.beta * np.linalg.norm(shares - right, axis=1)
    outer = np.exp(abn.beta * (shares - shares.max(1, keepdims=True)))  # the second softmax
    error = outer / outer.sum(1, keepdims=True) - right
    return abn.beta * np.linalg.norm(shares * (error - (shares * error).sum(1, keepdims=True)), axis=1)
