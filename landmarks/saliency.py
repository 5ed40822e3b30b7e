"""Class activation maps and Grad-CAM, the rivals of the attention map: where in the features a model finds its answer.

captum has no Grad-CAM++, and pytorch-grad-cam needs OpenCV, so Grad-CAM and Grad-CAM++ are computed here.
"""

from contextlib import ExitStack

from landmarks.models import AttentionBranchNetwork, Baseline, Output

import torch
from torch import Tensor
from torch.nn import functional as F


def maps(model: Baseline, features: Tensor) -> tuple[Output, dict[str, Tensor]]:
    """The output of `model` for `features` [N, C, H, W], and maps of its answers, by name.

    Maps are [N, H, W] with a maximum of 1 each. grad_cam and grad_cam_pp explain the perception branch by the features,
    or by the output of the tail. cam explains the attention branch: the class's score is the mean of its map (Zhou et
    al., arXiv 1512.04150). The baseline and models with the study's score layers have no cam. A map without any
    evidence is 1 everywhere.
    """
    layers = {"tail": model.tail[0]} if model.tail else {}
    if isinstance(model, AttentionBranchNetwork) and model.abn.objective != "summed_softmax":
        layers["evidence"] = model.scores[0]
    kept: dict[str, Tensor] = {}  # what these layers return
    with torch.enable_grad(), ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(lambda *call, name=name: kept.update({name: call[-1]}))
            hooks.callback(hook.remove)
        features = features.clone().requires_grad_()  # a tensor of inference mode has no gradient
        output = model(features)
        activations = kept.get("tail", features)
        answers = model.probabilities(output).argmax(1, keepdim=True)
        (gradient,) = torch.autograd.grad(output.perception.gather(1, answers).sum(), activations)
    with torch.no_grad():
        found = {"grad_cam": grad_cam(activations, gradient), "grad_cam_pp": grad_cam_pp(activations, gradient)}
        if "evidence" in kept:
            found["cam"] = kept["evidence"][torch.arange(len(features)), answers[:, 0]].relu()
        shown = {name: enlarge(values, features.shape[2:]) for name, values in found.items()}
    return Output(*(None if part is None else part.detach() for part in output)), shown  # type: ignore[arg-type]


def enlarge(values: Tensor, size: torch.Size) -> Tensor:
    """Maps [N, h, w] >= 0, resized to [N, *size] and divided by their maximum."""
    values = F.interpolate(values[:, None], size, mode="bilinear")[:, 0]
    top = values.amax((1, 2), keepdim=True)
    return torch.where(top > 0, values / top, 1)


def grad_cam(activations: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, eq. 1 and 2): [N, H, W] from [N, C, H, W]."""
    return (gradient.mean((2, 3), keepdim=True) * activations).sum(1).relu()


def grad_cam_pp(activations: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., arXiv 1710.11063, eq. 5, 7 and 19): [N, H, W] from [N, C, H, W]."""
    divisor = 2 * gradient**2 + activations.sum((2, 3), keepdim=True) * gradient**3
    shares = torch.where(divisor == 0, 0, gradient**2 / divisor)
    weights = (shares * gradient.relu()).sum((2, 3), keepdim=True)
    return (weights * activations).sum(1).relu()
