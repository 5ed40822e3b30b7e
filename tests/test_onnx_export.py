"""The ONNX file: another program that follows its metadata gets the same answers."""

import json
from pathlib import Path

from landmarks.params import Abn, Backbone
from landmarks.serving import onnx_export
from landmarks.serving.recognizer import Recognizer

import numpy as np
import onnxruntime
import pytest
from conftest import LITE, VGG, abn, drawing, jpeg, model_folder, tailed

pytestmark = pytest.mark.slow

PHOTOS = [jpeg(drawing(n)) for n in range(50)]
STUDY = abn(attention="multiply", objective="summed_softmax")


@pytest.mark.parametrize(
    ("block", "base"),
    [(None, VGG), (abn(), VGG), (STUDY, VGG), (abn(), LITE), (abn(), tailed(VGG)), (abn(), tailed(LITE))],
    ids=["baseline", "abn", "study", "timm", "tail", "timm's tail"],
)
def test_onnxruntime_gives_the_same_answers(tmp_path: Path, block: Abn | None, base: Backbone) -> None:
    model = Recognizer(model_folder(tmp_path / "m", block, base=base, threshold=0.25), "cpu")
    onnx_export.write(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])

    (entry,), outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    assert (entry.name, entry.shape[1:], entry.type) == ("pictures", [3, 64, 64], "tensor(float)")
    assert outputs == (["scores", "map"] if block else ["scores"])

    views = [model.view(photo) for photo in PHOTOS]
    answers = model.answer(views)
    pictures = np.stack([view.pixels for view in views]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    scores, *maps = session.run(None, {"pictures": pictures})
    assert np.ptp(scores, axis=0).max() > 0.01, "answers differ from photo to photo"
    assert np.abs(scores - [answer.scores for answer in answers]).max() < 1e-4
    if block:
        assert np.abs(maps[0] - [answer.map for answer in answers]).max() < 1e-4
    one, *_ = session.run(None, {"pictures": pictures[:1]})
    assert np.abs(one - scores[:1]).max() < 1e-4, "a batch of any size"

    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["landmarks"]) == ["a-1", "b-2", "c-3"] and json.loads(said["names"]) == ["", "Bridge", ""]
    assert said["threshold"] == "0.25" and "0.05" in said["threshold_meaning"]
    assert all(word in said["preprocessing"] for word in ("RGB", "0..1", "64 x 64", "256", "0.875", "mean"))
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["m", "m.onnx"], "one file"
