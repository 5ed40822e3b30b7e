"""The models: VGG-16's classifier, and the Attention Branch Network (Fukui et al., arXiv 1812.10025) around it.

Both read the trunk's features [N, C, H, W], float32, and return logits.
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

from landmarks import networks, objectives
from landmarks.determinism import seed_torch
from landmarks.params import Abn, Backbone, Block
from landmarks.stage import UserError
from landmarks.stage.errors import is_memory_error

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION_CHANNELS = 512  # as in the study


class Design(Block):
    """Everything needed to build a model. It is stored with the weights."""

    landmarks: list[str]  # the classes: label k is landmarks[k]
    shape: tuple[int, int, int]  # of one picture's features: channels, height, width
    hidden: int  # units of each hidden layer of the classifier; 0: it has no hidden layers
    dropout: float
    abn: Abn | None  # None: no attention
    seed: int  # decides the initial weights
    tail: Backbone | None = None  # the backbone whose tail is trained with the model; None: no tail


class Output(NamedTuple):
    """The output for N pictures: logits of each branch [N, K], and the attention map in 0..1 [N, 1, H, W]."""

    perception: Tensor
    attention: Tensor | None = None
    map: Tensor | None = None


def classifier(shape: tuple[int, int, int], hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """Features [N, *shape] -> logits [N, `classes`].

    With two layers of `hidden` units, as in VGG-16; or, if `hidden` is 0, as in later networks (Lin et al., arXiv
    1312.4400): one linear layer on the average over all positions.
    """
    channels, height, width = shape
    if not hidden:
        average = nn.AvgPool2d((height, width))  # global average pooling, deterministic on every device
        return nn.Sequential(average, nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, classes))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shape), hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


class Baseline(nn.Module):
    """The classifier, on standardised features.

    `mean` and `std` [C, 1, 1] are those of the training features, and are stored with the weights. Without them,
    training is several times slower, because most of a feature is the same for every picture.

    With a `tail`, the rest of the backbone is trained between the features and the classifier. For the Attention
    Branch Network that is the paper's own architecture (fig. 2); for the baseline it fine-tunes the last blocks.
    """

    mean: Tensor
    std: Tensor
    tail: nn.Sequential | None

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        self.tail, shape = None, design.shape
        if design.tail:
            _, rest = networks.split(design.tail)
            shape = output_shape(rest, shape, "augment.crop: too small for the layers after backbone.layer; raise it")
            # Hidden layers need standardised values, and those of the tail change while it is trained.
            last = nn.BatchNorm2d(shape[0], affine=False) if design.hidden else nn.Identity()
            self.tail = nn.Sequential(rest, last)
        seed_torch(design.seed, "classifier")  # the same initial weights with and without attention
        self.classifier = classifier(shape, design.hidden, len(design.landmarks), design.dropout)
        self.register_buffer("mean", torch.zeros(design.shape[0], 1, 1))
        self.register_buffer("std", torch.ones(design.shape[0], 1, 1))

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Gives a tail the weights of the backbone, as `weight_files.fetch` returns them."""
        if self.tail is not None:
            networks.load(self.tail[0], state)

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def weighted_input(self, features: Tensor, attention_map: Tensor | None) -> Tensor:
        """The input of the tail, or else of the classifier, [N, C, H, W].

        Models that have an `attention_map` [N, 1, H, W] weight it by that.
        """
        return self.standardise(features) if self.tail is None else features

    def classify(self, inputs: Tensor) -> Tensor:
        """The logits [N, K] for a weighted input."""
        return self.classifier(inputs if self.tail is None else self.tail(inputs))

    def forward(self, features: Tensor) -> Output:
        return Output(self.classify(self.weighted_input(features, None)))

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar. `labels` is int64 [N]."""
        return F.cross_entropy(output.perception, labels)

    def probabilities(self, output: Output) -> Tensor:
        """The answer: the probability of each class, [N, K]."""
        return output.perception.softmax(1)


class AttentionBranchNetwork(Baseline):
    """A branch that classifies on its own; its attention map weights what the classifier (perception) reads.

    `abn.attention` residual: the classifier reads (1 + M) * f (the paper's eq. 2); multiply: M * f (the study's).
    `abn.objective` summed_softmax also selects the study's score layers. The paper averages each class's evidence over
    all cells. The study averages it over the 7x7 cells around each cell; a linear layer reads all of these averages.

    `abn.branch` study: two new convolutions find the evidence; paper: a copy of the tail, which starts with the same
    weights of the backbone and is trained separately.
    """

    def __init__(self, design: Design) -> None:
        super().__init__(design)
        assert design.abn
        self.abn = design.abn
        seed_torch(design.seed, "attention")
        classes, (channels, height, width) = len(design.landmarks), design.shape
        if self.abn.branch == "paper":
            assert design.tail
            self.evidence = paper_branch(design.tail, design.shape, classes)
        else:
            self.evidence = study_branch(channels, classes)
        average = [nn.AvgPool2d((height, width)), nn.Flatten()]  # global average pooling
        if self.abn.objective == "summed_softmax":
            average = [nn.AvgPool2d(7, 1, 3), nn.Flatten(), nn.Linear(classes * height * width, classes)]
        self.scores = nn.Sequential(nn.Conv2d(classes, classes, 1), *average)
        self.map = nn.Sequential(nn.Conv2d(classes, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        # The branch starts as a class activation mapping: a class's score is its evidence, on the scale of the
        # features. From torch's initial weights, with scores near 0, it learns late: 71 % of rotated photographs
        # instead of 82 %.
        last = [layer for layer in self.evidence if isinstance(layer, nn.Conv2d)][-1]
        nn.init.kaiming_normal_(last.weight, nonlinearity="relu")
        nn.init.dirac_(self.scores[0].weight)  # type: ignore[arg-type]
        # The map starts as the sum of all evidence. With weights of both signs it would hide some landmarks.
        nn.init.constant_(self.map[0].weight, classes**-0.5)  # type: ignore[arg-type]

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        super().load_backbone(state)
        if self.abn.branch == "paper":
            networks.load(self.evidence[0], state)

    def forward(self, features: Tensor) -> Output:
        evidence = self.evidence(features if self.abn.branch == "paper" else self.standardise(features))
        attention_map = self.map(evidence)
        perception = self.classify(self.weighted_input(features, attention_map))
        return Output(perception, self.scores(evidence), attention_map)

    def weighted_input(self, features: Tensor, attention_map: Tensor | None) -> Tensor:
        assert attention_map is not None
        weights = 1 + attention_map if self.abn.attention == "residual" else attention_map
        return weights * super().weighted_input(features, attention_map)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        assert output.attention is not None
        return objectives.loss(output.perception, output.attention, labels, self.abn)

    def probabilities(self, output: Output) -> Tensor:
        assert output.attention is not None
        return objectives.probabilities(output.perception, output.attention, self.abn)


def study_branch(channels: int, classes: int) -> nn.Sequential:
    """Features [N, C, H, W] -> the evidence for each class in each cell, [N, K, H, W] >= 0, by new convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, ATTENTION_CHANNELS, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(ATTENTION_CHANNELS, ATTENTION_CHANNELS, 3, padding=1),
        nn.BatchNorm2d(ATTENTION_CHANNELS),
        nn.ReLU(inplace=True),
        nn.Conv2d(ATTENTION_CHANNELS, classes, 1),
        nn.ReLU(),
    )


def paper_branch(backbone: Backbone, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Like `study_branch`, by a copy of the backbone's tail at stride 1, as in the paper's official code for ResNet.

    Raises `UserError` if the copy changes the size of the features.
    """
    copy = networks.keep_size(networks.split(backbone)[1])
    mistake = f"abn.branch: at stride 1, the tail of {backbone.name} changes the size of maps; set study"
    channels, *size = output_shape(copy, shape, mistake)
    if size != list(shape[1:]):
        raise UserError(mistake)
    return nn.Sequential(
        copy,
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, classes, 1, bias=False),
        nn.BatchNorm2d(classes),
        nn.ReLU(),
    )


@torch.no_grad()
def output_shape(part: nn.Sequential, shape: tuple[int, int, int], mistake: str) -> tuple[int, int, int]:
    """The shape [C, H, W] of the output of a part of a network for features of `shape`.

    Raises `UserError` with the text `mistake` if the part cannot process them.
    """
    try:
        return tuple(part.eval()(torch.zeros(1, *shape)).shape[1:])
    except RuntimeError as error:
        if is_memory_error(error):
            raise
        raise UserError(mistake) from None


def build(design: Design) -> Baseline:
    """The model of that design, with its initial weights."""
    return Baseline(design) if design.abn is None else AttentionBranchNetwork(design)


def save(model: Baseline, directory: Path) -> None:
    """Writes `design.json` and `model.safetensors` into `directory`."""
    directory.mkdir()
    (directory / "design.json").write_text(model.design.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_model(model, str(directory / "model.safetensors"))


def load(directory: Path) -> Baseline:
    """The model that `save` wrote to `directory`."""
    model = build(Design.model_validate_json((directory / "design.json").read_bytes()))
    load_model(model, directory / "model.safetensors")
    return model
