"""The training loop, on random features."""

from collections.abc import Iterator
from pathlib import Path

from landmarks import models, weight_files
from landmarks.models import Baseline
from landmarks.params import Abn, Backbone
from landmarks.training import Epoch, Features, fit, predict, prepare_training, take, train_model, validate

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LITE, VGG, abn, design, tailed, train, user_error
from torch import Tensor

CLASSES, PER_CLASS = 3, 4
SETTINGS = train(dropout=0.0)


@pytest.fixture(scope="module", autouse=True)
def reproducible() -> None:
    prepare_training()


def data(views: int = 2) -> tuple[np.ndarray, pd.DataFrame]:
    """Noisy features of three classes [N, 8, 2, 2] and their index; each class has pictures in every split."""
    rng = np.random.default_rng(0)
    prototypes = rng.random((CLASSES, 8, 2, 2)) * 4
    rows = []
    for label in range(CLASSES):
        for n in range(PER_CLASS):
            split = "val" if n == 0 else "test" if n == 1 else "train"
            for view in range(views if split == "train" else 1):
                rows.append({"id": f"{n}-{label}", "view": view, "label": label, "split": split})
    index = pd.DataFrame(rows).sort_values(["id", "view"], ignore_index=True)
    index["row"] = np.arange(len(index))
    noise = rng.random((len(index), 8, 2, 2)) * 0.5
    return (prototypes[index["label"]] + noise).astype(np.float16), index


def test_rows_of_a_mapped_file_are_read_from_the_file(tmp_path: Path) -> None:
    array, rows = np.random.default_rng(0).random((9, 8, 2, 2)).astype(np.float16), np.array([7, 0, 8, 7])
    np.save(tmp_path / "features.npy", array)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for source in (array, mapped):
        assert (take(source, rows) == array[rows]).all()
    assert (take(mapped[2:], rows[:1] - 2) == array[7]).all()  # a part of the mapping has another offset


def eight() -> Features:
    """Eight pictures of three classes, with one view each."""
    array = np.random.default_rng(1).random((8, 8, 2, 2)).astype(np.float16) * 4
    return Features(array, pd.DataFrame({"row": np.arange(8), "label": np.arange(8) % 3}))


class Recorded(Features):
    """Features that record which of them are read."""

    def __init__(self, name: str, log: list[tuple[str, list[int]]], source: Features) -> None:
        self.array, self.rows, self.labels = source.array, source.rows, source.labels
        self.name, self.log = name, log

    def batches(
        self, order: np.ndarray, batch_size: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.log.append((self.name, order.tolist()))
        return super().batches(order, batch_size, device)


def test_batches_have_the_features_and_labels_of_the_order() -> None:
    array, index = data()
    rows = index[index["split"] == "train"]
    order = np.array([3, 0, 5, 1, 7, 2, 4])
    batches = list(Features(array, rows).batches(order, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 2, 1]
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert features.dtype == torch.float32 and labels.dtype == torch.int64
    assert np.array_equal(features.numpy(), array[rows.index[order]].astype(np.float32))
    assert labels.tolist() == rows["label"].iloc[order].tolist()


def test_features_follow_the_row_and_not_the_labels_of_the_frame() -> None:
    array, views = data()
    training = views[views["split"] == "train"]
    for selected in (training.reset_index(drop=True), training.sample(frac=1, random_state=0, ignore_index=True)):
        ((features, labels),) = Features(array, selected).batches(np.arange(len(selected)), len(selected))
        rows = [views.index[(views["id"] == v.id) & (views["view"] == v.view)].item() for v in selected.itertuples()]
        assert np.array_equal(features.numpy(), array[rows].astype(np.float32))
        assert labels.tolist() == selected["label"].tolist()


@pytest.mark.parametrize("factor", [0.1, 1.0, 30.0])
def test_statistics_standardise_each_channel(factor: float) -> None:
    rng = np.random.default_rng(0)
    array = (rng.random((400, 8, 2, 2)) * factor * np.arange(1, 9)[:, None, None]).astype(np.float16)
    rows = pd.DataFrame({"row": range(5, 395), "label": 0})
    mean, std = Features(array, rows).statistics()
    scaled = (torch.from_numpy(array[5:395]).float() - mean) / std
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(8), atol=0.02)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(8), atol=0.05)


def test_statistics_of_a_dead_channel_are_finite() -> None:
    array = np.zeros((9, 8, 2, 2), np.float16)
    mean, std = Features(array, pd.DataFrame({"row": range(9), "label": 0})).statistics()
    assert (mean == 0).all() and (std > 0).all()


def test_statistics_can_use_a_sample_of_the_rows() -> None:
    array = np.random.default_rng(0).random((500, 8, 2, 2)).astype(np.float16)
    features = Features(array, pd.DataFrame({"row": range(500), "label": 0}))
    for some, of_all in zip(features.statistics(sample=50), features.statistics(), strict=True):
        assert torch.allclose(some, of_all, rtol=0.15)


@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_eight_pictures_can_be_memorised(block: Abn | None) -> None:
    model, pictures = models.build(design(block)), eight()
    settings = SETTINGS.model_copy(update={"epochs": 12, "batch_size": 8})
    history = [epoch.metrics for epoch in fit(model, [pictures], pictures, settings, 0, lambda: None)]
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 4
    assert history[-1]["val/accuracy"] == history[-1]["train/accuracy"] == 1
    assert history[-1]["val/loss"] < history[0]["val/loss"]


def test_a_training_that_diverges_is_an_error() -> None:
    settings = SETTINGS.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    with user_error(r"train\.learning_rate: 1e\+30 gives no finite loss in epoch 1; lower it, or"):
        list(fit(models.build(design()), [eight()], eight(), settings, 0, lambda: None))


def test_epoch_e_reads_view_e_mod_views() -> None:
    log: list[tuple[str, list[int]]] = []
    views = [Recorded(name, log, eight()) for name in ("first", "second")]
    settings = SETTINGS.model_copy(update={"epochs": 3})
    assert len(list(fit(models.build(design()), views, eight(), settings, 0, lambda: None))) == 3
    assert [name for name, _ in log] == ["first", "second", "first"]
    epochs = [order for _, order in log]
    assert all(sorted(order) == list(range(8)) for order in epochs), "every picture once"
    assert epochs[0] != epochs[1] != epochs[2] != list(range(8)), "in another order each time"


def test_every_model_reads_the_same_pictures_in_the_same_order() -> None:
    def order(block: Abn | None) -> list:
        log: list = []
        list(fit(models.build(design(block)), [Recorded("a", log, eight())], eight(), SETTINGS, 0, lambda: None))
        return log

    assert order(None) == order(abn())


def test_every_step_is_counted() -> None:
    ticks: list[None] = []
    settings = SETTINGS.model_copy(update={"batch_size": 3})
    epochs = list(fit(models.build(design()), [eight()], eight(), settings, 0, lambda: ticks.append(None)))
    assert len(ticks) == 2 * 3 == sum(len(epoch.losses) for epoch in epochs)
    for epoch in epochs:
        assert epoch.metrics["train/loss"] == pytest.approx(np.average(epoch.losses, weights=[3, 3, 2]))


def test_sgd_has_momentum_and_a_constant_rate() -> None:
    """Compared with a plain loop with momentum 0.9."""
    model, plain, pictures = models.build(design()), models.build(design()), eight()
    settings = SETTINGS.model_copy(update={"optimizer": "sgd", "batch_size": 8, "epochs": 3, "weight_decay": 0.0})
    list(fit(model, [pictures], pictures, settings, 0, lambda: None))
    speed = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    ((features, labels),) = pictures.batches(np.arange(8), 8)
    for _ in range(3):
        gradients = torch.autograd.grad(plain.loss(plain(features), labels), list(plain.parameters()))
        with torch.no_grad():
            for parameter, velocity, gradient in zip(plain.parameters(), speed, gradients, strict=True):
                velocity.mul_(0.9).add_(gradient)
                parameter.sub_(0.01 * velocity)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    model, pictures = models.build(design(abn(), dropout=0.5)).train(), eight()
    whole, in_parts = (predict(model, pictures, size) for size in (64, 3))
    for one, two in zip(whole, in_parts, strict=True):
        assert len(one) == 8 and not one.requires_grad
        assert torch.allclose(one, two, atol=1e-5)
    assert predict(models.build(design()), pictures).map is None


def test_validation_does_not_change_the_model() -> None:
    model, pictures = models.build(design(abn(), dropout=0.5)), eight()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert validate(model, pictures) == validate(model, pictures)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def trained(log: Path, block: Abn | None, seed: int = 0) -> tuple[Baseline, dict[str, float]]:
    array, index = data()
    return train_model(
        array,
        index,
        landmarks=["a", "b", "c"],
        abn=block,
        train=SETTINGS.model_copy(update={"dropout": 0.5}),
        seed=seed,
        device=torch.device("cpu"),
        log=log,
    )


@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_two_runs_are_bit_identical(tmp_path: Path, block: Abn | None) -> None:
    (one, metrics), (two, again) = (trained(tmp_path / name, block) for name in ("one", "two"))
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert metrics == again
    other = trained(tmp_path / "other", block, seed=1)[0].state_dict()
    assert not torch.equal(states[0]["classifier.7.weight"], other["classifier.7.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("base", [tailed(VGG), tailed(LITE)], ids=["vgg16", "timm"])
@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_a_tail_is_trained_from_the_given_weights(tmp_path: Path, base: Backbone, block: Abn | None) -> None:
    """Bit-identically every time."""
    _, index = data(views=1)
    channels = 256 if base.name == "vgg16" else 112
    array = np.random.default_rng(0).random((len(index), channels, 4, 4)).astype(np.float16)
    state = weight_files.fetch(base.name, "random", 5)

    def tuned(log: str, **changes: float) -> Baseline:
        train = SETTINGS.model_copy(update={"optimizer": "sgd", "learning_rate": 1e-3, "hidden": 8} | changes)
        settings = {"landmarks": ["a", "b", "c"], "abn": block, "train": train, "seed": 0, "tail": (base, state)}
        return train_model(array, index, device=torch.device("cpu"), log=tmp_path / log, **settings)[0]

    first, one, again = tuned("first", learning_rate=1e-12), tuned("one"), tuned("again")
    assert first.design.tail == base
    for name, tensor in first.tail[0].named_parameters():
        assert torch.allclose(tensor, state[f"features.{name}"], atol=1e-6)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert any(
        not torch.equal(tensor, first.state_dict()[f"tail.{name}"]) for name, tensor in one.tail.named_parameters()
    )


class Stopped(Exception):
    """Simulates a kill."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path, block: Abn | None, optimizer: str) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 4, "batch_size": 3, "optimizer": optimizer})
    pictures, checkpoint = eight(), tmp_path / "checkpoint.pt"

    def run(stop: int | None, checkpoint: Path | None) -> tuple[dict, int, list[Epoch]]:
        steps = 0

        def tick() -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Stopped

        model = models.build(design(block, dropout=0.5))
        history = list(fit(model, [pictures], pictures, settings, 0, tick, checkpoint, every=0))
        return model.state_dict(), steps, history

    weights, steps, history = run(None, None)
    for stop in (2, 4, 8, 8):  # of twelve steps; twice in the third epoch
        with pytest.raises(Stopped):
            run(stop, checkpoint)
    again = run(None, checkpoint)
    assert all(torch.equal(tensor, again[0][name]) for name, tensor in weights.items())
    assert again[1:] == (steps, history) and steps == 12
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    content = checkpoint.read_bytes()
    weight = torch.load(checkpoint)["model"]["classifier.1.weight"].numpy().tobytes()
    for damaged in (b"", content[: len(content) // 2], content.replace(weight, bytes(len(weight)))):
        assert damaged != content
        checkpoint.write_bytes(damaged)  # as a power cut may leave it
        found, *rest = run(None, checkpoint)
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items()) and rest == [steps, history]


def test_there_is_no_checkpoint_before_its_time(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    list(fit(models.build(design()), [eight()], eight(), SETTINGS, 0, lambda: None, checkpoint, every=1e9))
    assert not checkpoint.exists()


@pytest.mark.parametrize("block", [None, abn()], ids=["baseline", "abn"])
def test_a_last_batch_may_have_one_picture(block: Abn | None) -> None:
    pictures, settings = eight(), SETTINGS.model_copy(update={"batch_size": 7})
    (epoch, *_) = fit(models.build(design(block)), [pictures], pictures, settings, 0, lambda: None)
    assert len(epoch.losses) == 2


def test_a_last_batch_of_one_picture_whose_map_is_one_cell_is_an_error() -> None:
    pictures = Features(np.ones((3, 8, 1, 1), np.float16), pd.DataFrame({"row": range(3), "label": range(3)}))
    model, settings = models.build(design(abn(), shape=(8, 1, 1))), SETTINGS.model_copy(update={"batch_size": 2})
    with user_error(r"train\.batch_size: leaves one picture for the last batch; change it"):
        list(fit(model, [pictures], pictures, settings, 0, lambda: None))


def test_the_model_knows_its_design(tmp_path: Path) -> None:
    model, _ = trained(tmp_path / "log", abn())
    array, index = data()
    first_view = index[(index["split"] == "train") & (index["view"] == 0)]
    assert model.design.landmarks == ["a", "b", "c"] and model.design.shape == (8, 2, 2)
    assert torch.equal(model.std, Features(array, first_view).statistics()[1])
    assert model.design.abn == abn()


def test_dvclive_logs_a_row_per_epoch(tmp_path: Path) -> None:
    _, metrics = trained(tmp_path / "log", abn())
    assert set(metrics) == {f"{split}/{name}" for split in ("train", "val") for name in ("accuracy", "loss")}
    for name, last in metrics.items():
        table = pd.read_csv(tmp_path / "log/plots/metrics" / f"{name}.tsv", sep="\t")
        assert table["step"].tolist() == [0, 1]
        assert table[name.split("/")[1]].iloc[-1] == pytest.approx(last)
        assert table[name.split("/")[1]].notna().all()


def test_the_loss_of_every_step_is_written(tmp_path: Path) -> None:
    _, metrics = trained(tmp_path / "log", abn())
    table = pd.read_csv(tmp_path / "log/steps.csv")
    assert table["epoch"].tolist() == [0.5, 1.0, 1.5, 2.0]  # two steps an epoch, of four and of two pictures
    last = table["loss"].iloc[2:]
    assert (last * [4, 2]).sum() / 6 == pytest.approx(metrics["train/loss"], abs=1e-5)
