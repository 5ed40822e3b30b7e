"""The classifier of VGG-16, and the Attention Branch Network (Fukui et al., arXiv 1812.10025) in front of it.

Both take the trunk's features [N, C, H, W] and return raw logits; softmax belongs to the loss and to inference.
"""

import json
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from landmarks import networks
from landmarks.determinism import seed_torch
from landmarks.params import Abn, Backbone

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

ATTENTION_CHANNELS = 512  # the study's
BLOCKS = {"abn": Abn, "tail": Backbone}  # the parts of a design that are blocks of params.yaml


class Output(NamedTuple):
    """What a model says of N pictures: logits of each branch [N, K], and the attention map in 0..1 [N, 1, H, W]."""

    perception: Tensor
    attention: Tensor | None = None
    map: Tensor | None = None


def classifier(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """VGG-16's classifier: features, flattened to `inputs` -> two layers of `hidden` units -> logits [N, `classes`]."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


@dataclass(frozen=True)
class Design:
    """All that is needed to build a model anew. It is stored with the weights."""

    landmarks: list[str]  # the classes: label k is landmarks[k]
    shape: tuple[int, int, int]  # of one picture's features: channels, height, width
    hidden: int  # units of each hidden layer of the classifier
    dropout: float
    abn: Abn | None  # None: no attention
    seed: int  # of the first weights
    tail: Backbone | None = None  # the backbone whose rest is trained as perception's first part; None: no such part


class Baseline(nn.Module):
    """The classifier on the features as they are, but for each channel's mean and standard deviation.

    `mean` and `std` [C, 1, 1] are of the training features; without them most of what the first layer sees is the same
    for every picture, and it learns several times more slowly. They are stored with the weights.

    With a `tail`, the rest of the backbone stands between the features, as they are, and the classifier, and is trained
    along: the paper's own wiring (its fig. 2), and for the baseline the fine-tuning of the last blocks.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        self.tail, shape = None, design.shape
        if design.tail:
            _, rest = networks.split(design.tail)
            shape = output_shape(rest, shape)
            self.tail = nn.Sequential(rest, nn.BatchNorm2d(shape[0], affine=False))  # standardised, as it changes
        seed_torch(design.seed, "classifier")  # the same first weights with and without attention
        self.classifier = classifier(prod(shape), design.hidden, len(design.landmarks), design.dropout)
        self.register_buffer("mean", torch.zeros(design.shape[0], 1, 1))
        self.register_buffer("std", torch.ones(design.shape[0], 1, 1))

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def classifier_input(self, features: Tensor, attention_map: Tensor | None = None) -> Tensor:
        """What perception reads [N, C, H, W], weighted by `attention_map` [N, 1, H, W] where there is one."""
        seen = self.standardise(features) if self.tail is None else features
        return seen if attention_map is None else self.weight_by_map(seen, attention_map)

    def classify(self, seen: Tensor) -> Tensor:
        """The logits [N, K] for what `classifier_input` returns."""
        return self.classifier(seen if self.tail is None else self.tail(seen))

    def forward(self, features: Tensor) -> Output:
        return Output(self.classify(self.classifier_input(features)))


class AttentionBranchNetwork(Baseline):
    """A branch that classifies on its own; its map weights the cells that the classifier (perception) reads.

    `abn.attention` residual: perception sees (1 + M) * f (the paper's eq. 2); multiply: M * f (the study's).
    `abn.objective` summed_softmax brings the study's head with it: where the paper averages each class's evidence over
    all places, the study averages it over the 7x7 places around each one, and has a linear layer read all of those.
    """

    def __init__(self, design: Design) -> None:
        super().__init__(design)
        seed_torch(design.seed, "attention")
        classes, (channels, height, width) = len(design.landmarks), design.shape
        self.evidence = nn.Sequential(
            nn.Conv2d(channels, ATTENTION_CHANNELS, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(ATTENTION_CHANNELS, ATTENTION_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(ATTENTION_CHANNELS),
            nn.ReLU(inplace=True),
            nn.Conv2d(ATTENTION_CHANNELS, classes, 1),
            nn.ReLU(),
        )
        average = [nn.AvgPool2d((height, width)), nn.Flatten()]  # global average pooling, deterministic on every device
        if design.abn.objective == "summed_softmax":
            average = [nn.AvgPool2d(7, 1, 3), nn.Flatten(), nn.Linear(classes * height * width, classes)]
        self.scores = nn.Sequential(nn.Conv2d(classes, classes, 1), *average)
        self.map = nn.Sequential(nn.Conv2d(classes, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        # It begins as a class activation mapping: the evidence for a class, of a size like the features', is its score.
        # From torch's own first weights, scores near to 0, it learns late: 71 instead of 82 % of rotated photographs.
        nn.init.kaiming_normal_(self.evidence[5].weight, nonlinearity="relu")
        nn.init.dirac_(self.scores[0].weight)
        # And the map as all evidence there is. With weights of either sign, some landmarks would be left in the dark.
        nn.init.constant_(self.map[0].weight, classes**-0.5)

    def forward(self, features: Tensor) -> Output:
        evidence = self.evidence(self.standardise(features))
        attention_map = self.map(evidence)
        return Output(
            self.classify(self.classifier_input(features, attention_map)), self.scores(evidence), attention_map
        )

    def weight_by_map(self, features: Tensor, attention_map: Tensor) -> Tensor:
        """Features [N, C, H, W] weighted by `attention_map` [N, 1, H, W]."""
        return (1 + attention_map if self.design.abn.attention == "residual" else attention_map) * features


@torch.no_grad()
def output_shape(part: nn.Sequential, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape [C, H, W] of what a part of a network makes of features of `shape`."""
    return tuple(part.eval()(torch.zeros(1, *shape)).shape[1:])


def build(design: Design) -> Baseline:
    """The model of that design, with its first weights."""
    return Baseline(design) if design.abn is None else AttentionBranchNetwork(design)


def save(model: Baseline, directory: Path) -> None:
    """Writes `design.json` and `model.safetensors` into `directory`."""
    directory.mkdir()
    blocks = {name: block and block.model_dump() for name, block in vars(model.design).items() if name in BLOCKS}
    design = asdict(model.design) | blocks
    (directory / "design.json").write_text(json.dumps(design, indent=1) + "\n", encoding="utf-8")
    save_model(model, str(directory / "model.safetensors"))


def load(directory: Path) -> Baseline:
    """The model that `save` wrote to `directory`."""
    design = json.loads((directory / "design.json").read_text(encoding="utf-8"))
    model = build(Design(**design | {name: design[name] and cls(**design[name]) for name, cls in BLOCKS.items()}))
    load_model(model, directory / "model.safetensors")
    return model
