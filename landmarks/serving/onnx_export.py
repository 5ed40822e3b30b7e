"""A released model as one ONNX file: trunk, attention and classifier. Its metadata say how to use it.

Input   pictures, float32 [N, 3, S, S]: RGB in 0..1. The model itself normalises them.
Output  scores, float32 [N, K]: the probabilities of the classes.
        map, float32 [N, H, W] in 0..1: the attention map, if the model has one.
"""

import json
from pathlib import Path

from landmarks import stage
from landmarks.serving.recognizer import Recognizer

import onnx
import torch
from torch import Tensor, nn

OPSET = 20  # from 2023; common runtimes support it


class WholeModel(nn.Module):
    """Pictures [N, 3, S, S], RGB in 0..1 -> scores [N, K], and the map [N, H, W] of a model with attention."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.trunk, self.model = recognizer.trunk, recognizer.model

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        output = self.model(self.trunk(pictures).float())
        scores = self.model.probabilities(output)
        return (scores,) if output.map is None else (scores, output.map[:, 0])


def metadata(recognizer: Recognizer) -> dict[str, str]:
    """What a program needs to know to use the file."""
    prepared, unknown = recognizer.facts["preprocessing"], recognizer.facts["unknown"]
    side = prepared["crop"]
    return {
        "preprocessing": "Decode the photo to upright RGB (apply the EXIF orientation). If its short side is above "
        f"{prepared['short_side']} pixels, shrink it to that (Lanczos). Cut out the centre square, "
        f"{prepared['centre_scale']:g} of the short side, and resize it to {side} x {side} pixels (bilinear, with "
        f"antialiasing). Divide by 255, so that values are 0..1, and order as [N, 3, {side}, {side}]. Do not subtract "
        "a mean: the model does.",
        "landmarks": json.dumps(recognizer.landmarks),
        "names": json.dumps([recognizer.names.get(name, "") for name in recognizer.landmarks]),
        "threshold": f"{unknown['threshold']:g}",
        "threshold_meaning": "If the best score is below it, the photo probably shows none of the landmarks. For a "
        f"photo of a known landmark this happens with a probability of at most {unknown['false_alarm_rate']:g}.",
        "model": recognizer.facts["name"],
        "backbone": json.dumps(recognizer.facts["backbone"]),
    }


def write(recognizer: Recognizer, path: Path) -> None:
    """Writes the ONNX file to `path`, completely or not at all."""
    side = recognizer.facts["preprocessing"]["crop"]
    program = torch.onnx.export(
        WholeModel(recognizer).eval(),
        (torch.zeros(2, 3, side, side, device=recognizer.device),),
        input_names=["pictures"],
        output_names=["scores", "map"] if recognizer.has_map else ["scores"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(recognizer))
    model.doc_string = __doc__
    if model.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF:
        raise stage.UserError("--onnx: the model is larger than 2 GB, the limit of the format; lower train.hidden")
    onnx.checker.check_model(model)
    with stage.atomic_output(path) as part:
        onnx.save(model, part)
