"""params.yaml, typed. The file itself explains each key, its unit and its value."""

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from landmarks import artifacts, stage
from landmarks.stage import UserError
from landmarks.stage.errors import reason
from landmarks.weights import WEIGHT_SETS

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Angle = Annotated[float, Field(ge=0, le=180)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # much larger ones overflow float32
Count = Annotated[int, Field(ge=1)]
# A name is a folder in models/trained/ and a row of the results table.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
PORT = "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"  # at most 65535
ADDRESS = rf"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[\w-]+(\.[\w-]+)*):{PORT}"  # a scheduler's address
NAMED_WEIGHTS = "|".join(dict.fromkeys(row.name for row in WEIGHT_SETS))


class Loader(yaml.SafeLoader):
    """Also reads 1e-05 as a number, as YAML 1.2 does, in which DVC writes params.yaml."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str | bytes) -> Any:  # noqa: ANN401  # any value
    """The blocks of params.yaml, or the value of a key, unchecked."""
    return yaml.load(text, Loader)  # noqa: S506  # a safe one


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Block):
    source: Literal["sample", "folder", "gldv1", "gldv2"]
    root: Annotated[str, Field(min_length=1)] | None
    only: Annotated[str, Field(min_length=1)] | None
    version: str | None

    @model_validator(mode="after")
    def is_used(self) -> "Data":
        if self.source == "sample" and self.root:
            raise ValueError(f"source sample has no root, {self.root} is not used; set source: folder, gldv1 or gldv2")
        return self

    @property
    def portable(self) -> "Data":
        """The same block with only the last part of paths, which tells nothing about the user's machine or server."""

        def last(path: str | None) -> str | None:
            path = path or ""
            if "://" in path:
                path = re.split("[?#]", path)[0].rpartition("@")[2]
            return path.rstrip("/").rpartition("/")[2] or None

        return self.model_copy(update={"root": last(self.root), "only": last(self.only)})


class Download(Block):
    workers: Count
    retries: Annotated[int, Field(ge=0)]
    timeout: Annotated[float, Field(gt=0)]
    max_megabytes: Annotated[float, Field(gt=0)]
    min_success: Fraction

    @property
    def max_bytes(self) -> float:
        return self.max_megabytes * 1e6


def number_or_all(value: object) -> object:
    """Checks filter.top_k. A union of types would report an error for each of them."""
    if value == "all" or (type(value) is int and value >= 2):
        return value
    raise ValueError(f"{reprlib.repr(value)} is wrong: give a number of classes, at least 2, or all")


class Filter(Block):
    top_k: Annotated[int | Literal["all"], PlainValidator(number_or_all)]
    skip_top: Annotated[int, Field(ge=0)]
    min_images: Annotated[int, Field(ge=3)]
    short_side: Annotated[int, Field(ge=64)]  # images.MIN_SIDE


class Split(Block):
    train: PositiveFraction
    val: PositiveFraction
    test: PositiveFraction
    group_near_duplicates: bool
    # The default is not in dumps: most data have no given splits.
    given: Annotated[Literal["keep", "redraw"], Field(exclude_if=lambda value: value == "keep")]

    @model_validator(mode="after")
    def adds_up(self) -> "Split":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + val + test is {total:g}; make it 1")
        return self


class Augment(Block):
    views: Count
    rotation: Angle
    eval_rotation: Angle
    crop: Annotated[int, Field(ge=32, le=4096)]
    scale: tuple[PositiveFraction, PositiveFraction] = Field(strict=False)
    brightness: Annotated[float, Field(ge=0, lt=1)]
    flip: bool

    @model_validator(mode="after")
    def ordered(self) -> "Augment":
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale is [smallest, largest]; swap them")
        return self


class Backbone(Block):
    name: Annotated[str, Field(pattern=r"^[a-z0-9_.]+$")]  # timm's names may have a tag: resnet50.a1_in1k
    weights: Annotated[str, Field(pattern=rf"^({NAMED_WEIGHTS}|.+\.safetensors)$")]
    layer: Annotated[str, Field(pattern=r"^(conv[345]|level[1-9]|last)$")]
    tail: Literal["none", "trained"]

    @model_validator(mode="after")
    def fits(self) -> "Backbone":
        networks = [row.network for row in WEIGHT_SETS if row.name == self.weights]
        if networks and not {None, self.name} & set(networks):
            raise ValueError(f"weights {self.weights} belong to {networks[0]}; set imagenet, random or a file")
        if self.layer.startswith("conv") is not (self.name == "vgg16"):
            levels = "conv3, conv4, conv5" if self.name == "vgg16" else "level1, level2... and last"
            raise ValueError(f"{self.name} has no layer {self.layer}; it has {levels}")
        return self

    @property
    def portable(self) -> "Backbone":
        """The same block without the directory of a weights file, which means nothing on another machine."""
        return self.model_copy(update={"weights": self.weights.rpartition("/")[2]})


class Train(Block):
    # Not in dumps: it changes none of the trainings.
    repeats: Annotated[int, Field(ge=1, exclude=True)]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Weight
    hidden: Annotated[int, Field(ge=0, le=65536)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Abn(Block):
    alpha: Weight
    beta: Weight
    branch: Literal["study", "paper"]
    attention: Literal["residual", "multiply"]
    objective: Literal["branches", "summed_softmax"]

    @model_validator(mode="after")
    def trains_something(self) -> "Abn":
        if self.alpha + self.beta == 0:
            raise ValueError("alpha and beta are both 0; set one above 0")
        return self


class Evaluate(Block):
    calibration_bins: Annotated[int, Field(ge=1, le=10_000)]


class Package(Block):
    false_alarm_rate: Annotated[float, Field(ge=0, lt=1)]
    similar: Literal["none", "ids", "pictures"]


class Compute(Block):
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["float32", "bfloat16"]
    workers: Annotated[int, Field(ge=0)]
    cluster: Annotated[str, Field(pattern=rf"^(local:[1-9][0-9]*|{ADDRESS})$")] | None


class Params(Block):
    seed: Annotated[int, Field(ge=0)]
    data: Data
    download: Download
    filter: Filter
    split: Split
    augment: Augment
    backbone: Backbone
    train: Train
    abn: Abn
    ablations: dict[Name, Abn]
    evaluate: Evaluate
    package: Package
    compute: Compute

    @property
    def models(self) -> dict[str, Abn | None]:
        """The attention block of every model, in the order of the results table; the baseline has none."""
        return {"baseline": None, "abn": self.abn, **dict(sorted(self.ablations.items()))}

    def model(self, name: str) -> Abn | None:
        """The attention block of a model. Raises `UserError` if params.yaml has no model of this name."""
        if name not in self.models:
            raise UserError(f"{name}: no model of params.yaml; choose from {', '.join(self.models)}")
        return self.models[name]

    @model_validator(mode="after")
    def names_are_free(self) -> "Params":
        taken = {"baseline", "abn"} & set(self.ablations)
        if taken:
            raise ValueError(f"ablations.{min(taken)}: the name is taken by a model; choose another")
        return self

    @model_validator(mode="after")
    def branches_fit(self) -> "Params":
        for name, block in self.models.items():
            if block and block.branch == "paper" and self.backbone.tail == "none":
                key = name if name == "abn" else f"ablations.{name}"
                raise ValueError(
                    f"{key}.branch: paper is a copy of a trained tail; set backbone.tail: trained, or study"
                )
        return self


def load(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks the whole file. Raises `UserError` that names the file, the first wrong key and the fix.

    Refuses files of the user in an out, where DVC would delete them, and in a folder that contains one.
    """
    try:
        values = read_yaml(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the repository's root") from None
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception as error:  # PyYAML raises many types, such as ValueError for a 13th month
        raise UserError(f"{path}: not YAML: {error}") from None
    try:
        p = Params.model_validate({} if values is None else values)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error)}") from None
    files = {"data.root": p.data.root, "data.only": p.data.only, "backbone.weights": p.backbone.weights}
    for key, given in files.items():
        if given and (out := artifacts.overlapping_out(given.removeprefix("file://"), stage.repository())):
            raise UserError(
                f"{path}: {key}: {given} overlaps {out}, which DVC deletes and rewrites; move your files elsewhere"
            )
    return p


def describe(error: ValidationError) -> str:
    """The first mistake in one line, with how many more there are."""
    first, *others = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    match first["type"]:
        case "missing":
            text = f"{key}: missing; every key is required"
        case "extra_forbidden":
            text = f"{key}: unknown key; remove it or correct its spelling"
        case "value_error":
            text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case _:
            text = f"{key or 'the file'}: {reprlib.repr(first['input'])} is wrong: {first['msg'].lower()}"
    return text + (f" (and {len(others)} more)" if others else "")


if __name__ == "__main__":
    stage.run(lambda: f"seed {load().seed}, all keys are valid")
