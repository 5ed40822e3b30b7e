"""Bit-identical results on different machines: named random streams, and fixed code paths of numeric libraries.

numpy and torch read the variables below once, when they are loaded. The package imports this module first, and ruff
keeps first-party imports above third-party ones, so that the variables are set by then.
"""

import ctypes
import hashlib
import os
import platform

os.environ.update(
    # AVX-512 code sums in another order than AVX2 code, so torch and numpy use AVX2 everywhere. oneDNN may use AVX-512.
    ATEN_CPU_CAPABILITY="avx2",
    NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR",
    # MKL's only code path that is the same on processors of all vendors.
    MKL_CBWR="COMPATIBLE",
    # No bfloat16 in place of float32, even if the user's environment allows it.
    ONEDNN_DEFAULT_FPMATH_MODE="STRICT",
    # Speed only; results are unchanged. Large pages make a classifier step a quarter faster.
    THP_MEM_ALLOC_ENABLE="1",
)

# The user's environment may have variables that change results.
os.environ.pop("NPY_ENABLE_CPU_FEATURES", None)  # numpy refuses to start with it and NPY_DISABLE_CPU_FEATURES
os.environ.pop("OMP_THREAD_LIMIT", None)  # this and the next two: fewer threads than torch knows of, so other sums
os.environ.pop("OMP_DYNAMIC", None)
os.environ.pop("OMP_MAX_ACTIVE_LEVELS", None)
os.environ.pop("PANDAS_FUTURE_INFER_STRING", None)  # other types of columns
os.environ.pop("FREETYPE_PROPERTIES", None)  # other letters in figures
os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)  # matrix products with 10 of 23 mantissa bits on a GPU
if {os.environ.get("ONEDNN_MAX_CPU_ISA"), os.environ.get("DNNL_MAX_CPU_ISA")} & {"SSE41", "AVX"}:  # less than AVX2
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    os.environ.pop("DNNL_MAX_CPU_ISA", None)
if platform.machine() == "x86_64":
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"  # AVX2 for the matrix products of numpy and scipy

from typing import TYPE_CHECKING

from landmarks.stage import UserError

import numpy as np

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The random generator of this name. Streams are independent: drawing more from one does not change another.

    >>> stream(1, "split", "a").integers(100) == stream(1, "split", "a").integers(100)
    True
    """
    key = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.PCG64([seed, *np.frombuffer(key, dtype="<u4").tolist()]))


def seed_torch(seed: int, *names: str | int) -> None:
    """Seeds torch's global generator (initial weights, dropout) from the stream of this name."""
    import torch  # imported here because it takes seconds and half of the stages do not need it

    torch.manual_seed(int(stream(seed, *names).integers(2**63)))


def pick_device(name: str, key: str = "compute.device") -> "torch.device":
    """The device for a `compute.device` of cpu, cuda, mps or auto (cuda if available, else mps, else cpu).

    Raises `UserError` that names `key` if the machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available[name]:
        raise UserError(f"{key}: this machine has no {name}; set auto or cpu")
    torch.backends.cudnn.allow_tf32 = False  # otherwise convolutions use 10 of 23 mantissa bits
    return torch.device(name)


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copies a tensor to `device`; a copy to a GPU is asynchronous."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_memory() -> None:
    """Speed only; results are unchanged. Makes glibc's malloc keep freed memory; does nothing with other C libraries.

    By default it returns the memory of large tensors to the system, which clears it before it is used again. The trunk
    processes 8 % more pictures per second at 112 pixels with this setting, and 20 % more at 224.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def prepare_inference() -> None:
    """Makes the trunk fast and its output independent of the number of cores. Call it before the first picture."""
    import torch
    from joblib import cpu_count  # unlike torch, respects a container's limit

    # With one thread, torch uses other code for 1x1 convolutions (timm's networks have them), which rounds differently.
    torch.set_num_threads(max(2, min(torch.get_num_threads(), cpu_count())))
    keep_memory()
