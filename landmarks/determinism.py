"""Everything that makes two machines agree to the bit: named random streams, and the code paths of numeric libraries.

Importing the package imports this module first, and ruff keeps first-party imports above third-party ones, so that the
variables below are set before numpy and torch read them, once, when they are loaded.
"""

import ctypes
import hashlib
import os
import platform

os.environ.update(
    # Vector code for AVX-512 sums in another order than that for AVX2. Every x86-64 machine takes the AVX2 one.
    ATEN_CPU_CAPABILITY="avx2",
    NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR",
    # MKL's only code path that is the same on processors of every maker.
    MKL_CBWR="COMPATIBLE",
    # Whatever the user's environment says for other programs: no bfloat16 in place of float32.
    ONEDNN_DEFAULT_FPMATH_MODE="STRICT",
    # Speed only; results are unchanged. With large pages, a step of the classifier takes a quarter less time.
    THP_MEM_ALLOC_ENABLE="1",
)

# numpy does not start with both.
os.environ.pop("NPY_ENABLE_CPU_FEATURES", None)
if platform.machine() == "x86_64":
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"  # numpy's and scipy's matrix products; that is AVX2 as well

from typing import TYPE_CHECKING

from landmarks.stage import UserError

import numpy as np

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

# The gradient of a convolution's weights is summed per thread, so training must have the same number everywhere.
TRAINING_THREADS = 2


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for each name: drawing more numbers in one place changes none in another.

    >>> stream(1, "split", "a").integers(100) == stream(1, "split", "a").integers(100)
    True
    """
    key = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.PCG64([seed, *np.frombuffer(key, dtype="<u4").tolist()]))


def seed_torch(seed: int, *names: str | int) -> None:
    """Seeds torch's global generator, which layers and dropout draw from, with the stream of that name."""
    import torch  # half of the stages do without, and it takes seconds to import

    torch.manual_seed(int(stream(seed, *names).integers(2**63)))


def pick_device(name: str) -> "torch.device":
    """The device that `compute.device` names; auto is cuda or mps where there is one, else cpu.

    Raises `UserError` when the machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available[name]:
        raise UserError(f"compute.device: this machine has no {name}; set auto or cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, not its first ten bits, in convolutions as well
    return torch.device(name)


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The tensor on `device`; to a GPU it travels while the processor goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_memory() -> None:
    """No matter of bits: what is freed stays with the process. glibc would hand a large tensor's memory back to the
    system, which fills it with zeros before the next one. Measured: with it the trunk sees 8 % more pictures a second
    at 112 pixels and 20 % at 224. Elsewhere than with glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def prepare_inference() -> None:
    """Makes the trunk's output the same on any number of cores, and fast; call it before the first picture."""
    import torch

    # On one thread torch takes other code for convolutions of 1x1, which timm's networks have, with other last bits.
    torch.set_num_threads(max(2, torch.get_num_threads()))
    keep_memory()


def prepare_training() -> None:
    """Makes training bit-reproducible; call it before the first convolution.

    Measured on AMD EPYCs with AVX-512: an epoch of the ABN gives the same weights on one core and on two, with
    OMP_NUM_THREADS 1 and 8, and with MKL held to AVX2 or to SSE4.2; the pipeline gives the same on Zen 4 and Zen 5.
    """
    import torch

    # With AVX-512 convolutions have other bits (benchmarks/results.md says which, and what that costs).
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(TRAINING_THREADS)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports a compiler: two seconds
    torch.utils.deterministic.fill_uninitialized_memory = False  # which we never read
    torch.backends.cudnn.benchmark = False
    keep_memory()
