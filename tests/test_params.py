"""params.yaml: valid values are read, and every mistake gives one line that names the key."""

from pathlib import Path

from landmarks import params

import pytest
import yaml
from conftest import ROOT, default_values, user_error

VALUES = default_values()
KEYS = [*VALUES, *(f"{block}.{key}" for block, keys in VALUES.items() if isinstance(keys, dict) for key in keys)]
REQUIRED = [key for key in KEYS if not key.startswith("ablations.")] + ["ablations.study.alpha"]
MISSING = object()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def write(file: Path, key: str, value: object) -> Path:
    """The repository's params.yaml with `key` (dotted) set to `value`, or taken out."""
    values = default_values()
    *blocks, last = key.split(".")
    block = values
    for name in blocks:
        block = block[name]
    if value is MISSING:
        del block[last]
    else:
        block[last] = value
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def test_the_repositorys_file_is_read() -> None:
    read = params.load(ROOT / "params.yaml")
    assert read.seed == VALUES["seed"]
    hidden = {"train": "repeats", "split": "given"}
    shown = {name: {key: VALUES[name][key] for key in VALUES[name] if key != hidden[name]} for name in hidden}
    assert read.model_dump(mode="json") == VALUES | shown
    assert isinstance(read.augment.scale, tuple)


def test_top_k_may_be_all(file: Path) -> None:
    assert params.load(write(file, "filter.top_k", "all")).filter.top_k == "all"


@pytest.mark.parametrize("key", ["filter.top_k", "data.source", "seed"])
def test_a_long_value_is_shortened_in_the_message(file: Path, key: str) -> None:
    with user_error(rf"{key}: 'x+\.\.\.x+' is wrong"):
        params.load(write(file, key, "x" * 3000))


def test_models_are_in_the_order_of_the_results_table() -> None:
    values = VALUES | {"ablations": {"study": VALUES["ablations"]["study"], "alpha-0": VALUES["abn"]}}
    models = params.Params.model_validate(values).models
    assert list(models) == ["baseline", "abn", "alpha-0", "study"]
    assert models["baseline"] is None and models["alpha-0"] == models["abn"] != models["study"]


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("data", "root", "data/downloaded"),
        ("data", "root", "."),
        ("data", "root", "file://data/filtered"),
        ("data", "only", "data/downloaded/ids.txt"),
        ("backbone", "weights", "models/backbone.safetensors"),
    ],
)
def test_user_files_that_overlap_an_out_are_refused(file: Path, block: str, key: str, value: str) -> None:
    settings = VALUES[block] | ({"source": "folder"} if block == "data" else {}) | {key: value}
    message = rf"{block}\.{key}: {value} overlaps \S+, which DVC deletes and rewrites; move your files"
    with user_error(rf"params\.yaml: {message}"):
        params.load(write(file, block, settings))


def test_the_sample_has_no_root(file: Path) -> None:
    """Otherwise a run without data.source would silently not use the pictures."""
    with user_error(r"params\.yaml: data: source sample has no root, /my/pictures is not used; set source"):
        params.load(write(file, "data.root", "/my/pictures"))


@pytest.mark.parametrize("key", ["sede", "filter.topk", "ablations.study.alhpa"])
def test_unknown_key(file: Path, key: str) -> None:
    with user_error(rf"params\.yaml: {key}: unknown key"):
        params.load(write(file, key, 1))


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key(file: Path, key: str) -> None:
    with user_error(rf"params\.yaml: {key}: missing"):
        params.load(write(file, key, MISSING))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "2019"),
        ("seed", 1.0),
        ("seed", True),
        ("data", "sample"),
        ("data.root", 3),
        ("data.only", 3),
        ("filter.top_k", 27.5),
        ("filter.top_k", True),
        ("filter.top_k", None),
        ("filter.skip_top", None),
        ("split.train", "0.7"),
        ("split.group_near_duplicates", "yes"),
        ("augment.scale", 0.7),
        ("augment.scale", [0.7, 0.8, 0.9]),
        ("augment.scale", ["small", 1.0]),
        ("augment.flip", 1),
        ("train.epochs", 3.0),
        ("train.epochs", True),
        ("train.learning_rate", "fast"),
        ("train.learning_rate", True),
        ("abn", [0.25, 1.0]),
        ("ablations", None),
        ("ablations.study", 1),
    ],
)
def test_wrong_type(file: Path, key: str, value: object) -> None:
    with user_error(rf"params\.yaml: {key}[.:].* is wrong"):
        params.load(write(file, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("data.source", "gldv3"),
        ("data.root", ""),
        ("filter.top_k", 1),
        ("filter.top_k", "most"),
        ("filter.skip_top", -1),
        ("filter.min_images", 2),
        ("filter.short_side", 8),
        ("split.test", 1.15),
        ("split.given", "draw"),
        ("augment.views", 0),
        ("augment.rotation", 181),
        ("augment.crop", 31),
        ("augment.crop", 0),
        ("augment.crop", 10**10),
        ("augment.scale", [0, 1.0]),
        ("augment.scale", [0.7, 1.5]),
        ("augment.brightness", 1.0),
        ("backbone.name", "../vgg16"),
        ("backbone.weights", "weights.pth"),
        ("backbone.layer", "conv6"),
        ("backbone.tail", "frozen"),
        ("train.batch_size", 0),
        ("train.learning_rate", 0),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", float("nan")),
        ("train.hidden", -1),
        ("train.hidden", 10**19),
        ("train.weight_decay", -0.1),
        ("train.dropout", 1.0),
        ("data.only", ""),
        ("abn.alpha", -0.25),
        ("abn.alpha", 1e30),
        ("abn.attention", "additive"),
        ("ablations.study.objective", "sum"),
        ("evaluate.calibration_bins", 0),
        ("evaluate.calibration_bins", 10**19),
        ("package.false_alarm_rate", 1.0),
        ("package.false_alarm_rate", -0.05),
        ("package.similar", "all"),
        ("compute.device", "tpu"),
        ("compute.workers", -1),
        ("compute.cluster", "local:0"),
        ("compute.cluster", "localhost:8786"),
        ("compute.cluster", "tls://localhost"),
        ("compute.cluster", "tcp://localhost:65536"),
    ],
)
def test_value_out_of_range(file: Path, key: str, value: object) -> None:
    with user_error(rf"params\.yaml: {key}[.:].* is wrong"):
        params.load(write(file, key, value))


def resnet(layer: str, tail: str) -> dict[str, str]:
    return {"name": "resnet50", "weights": "imagenet", "layer": layer, "tail": tail}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("split.train", 0.75, r"split: train \+ val \+ test is 1\.05"),
        ("split", {**VALUES["split"], "train": 0.85, "val": 0.0}, r"split\.val: 0\.0 is wrong: .*greater than 0"),
        ("abn", {**VALUES["abn"], "alpha": 0.0, "beta": 0.0}, "abn: alpha and beta are both 0"),
        ("ablations.study", {**VALUES["abn"], "alpha": 0, "beta": 0}, r"ablations\.study: alpha and beta are both 0"),
        ("augment.scale", [1.0, 0.7], "augment: scale is .*swap"),
        ("augment.scale", [0.7], r"augment\.scale\.1: missing"),
        ("backbone.name", "resnet50", "backbone: weights hed-bsds500 belong to vgg16; set"),
        ("backbone.layer", "last", "backbone: vgg16 has no layer last; it has conv3, conv4, conv5"),
        ("backbone", resnet("conv4", "none"), "backbone: resnet50 has no layer conv4; it has level1"),
        ("abn.branch", "paper", r"abn\.branch: paper is a copy of a trained tail; set backbone\.tail: trained"),
        ("ablations.abn", VALUES["abn"], r"ablations\.abn: the name is taken"),
        ("ablations.baseline", VALUES["abn"], r"ablations\.baseline: the name is taken"),
        ("ablations.Study", VALUES["abn"], r"ablations\.Study: .*is wrong"),
        ("ablations.../study", VALUES["abn"], r"ablations\.\.\./study: .*is wrong"),
        ("ablations.v1.0", VALUES["abn"], r"ablations\.v1\.0: .*is wrong"),
    ],
)
def test_values_that_do_not_fit_together(file: Path, key: str, value: object, message: str) -> None:
    block, _, name = key.partition(".")
    values = VALUES | {block: {**VALUES[block], name: value} if name else value}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with user_error(rf"params\.yaml: {message}"):
        params.load(file)


@pytest.mark.parametrize("key", ["augment.rotation", "train.learning_rate", "abn.alpha", "ablations.study.beta"])
def test_an_integer_is_a_number(file: Path, key: str) -> None:
    write(file, key, 1)
    value: object = params.load(file)
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    assert value == 1.0 and isinstance(value, float)


def test_several_mistakes_are_counted(file: Path) -> None:
    write(file, "train", {**VALUES["train"], "epochs": 0, "dropout": 2})
    with user_error(r"train\.epochs: .*\(and 1 more\)"):
        params.load(file)


@pytest.mark.parametrize("text", ["1e-05", "5e-05", "1E-3", "2.5e-4", "-0e+1"])
def test_numbers_are_read_as_dvc_writes_them(file: Path, text: str) -> None:
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8")
    file.write_text(lines.replace("weight_decay: 0.01 ", f"weight_decay: {text} "), encoding="utf-8")
    assert params.load(file).train.weight_decay == float(text)


@pytest.mark.parametrize("text", ["seed: [1\n", "seed: 1\n\tdata: 2\n", "a: b: c\n"])
def test_not_yaml(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with user_error(r"params\.yaml: not YAML: .*line"):
        params.load(file)


def test_an_empty_file_misses_every_key(file: Path) -> None:
    file.write_text("", encoding="utf-8")
    with user_error(r"params\.yaml: seed: missing.*\(and 12 more\)"):
        params.load(file)


@pytest.mark.parametrize("text", ["just text\n", "- a\n- b\n"])
def test_yaml_that_is_no_mapping(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with user_error(r"params\.yaml: .*dictionary"):
        params.load(file)


def test_not_text(file: Path) -> None:
    file.write_bytes(b"seed: \xff\n")
    with user_error(r"params\.yaml: not YAML"):
        params.load(file)


def test_missing_file(file: Path) -> None:
    with user_error(r"params\.yaml: not found"):
        params.load(file)
