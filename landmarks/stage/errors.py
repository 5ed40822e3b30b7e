"""Errors in one line: what went wrong, and how to fix it."""

import errno
import os
import re
from concurrent.futures import BrokenExecutor

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself access"),
    errno.EROFS: "make it writable",
}
MORE_MEMORY = "close other programs, or set compute.workers to 1"
MORE_GPU_MEMORY = "close other programs on the GPU, lower train.batch_size, or set compute.device to cpu"


class UserError(Exception):
    """A mistake that the user can correct. The message is one line that names the key or file and the fix."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    pattern = "allocate memory|out of (shared )?memory|DataLoader worker"
    return isinstance(error, MemoryError) or re.search(pattern, str(error)) is not None


def reason(error: Exception) -> str:
    """The error in a few words, in lower case, without the file's name."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def explain(error: BaseException) -> str | None:
    """One line about a mistake of the user or a failure of the machine: what went wrong and the fix. None for a bug."""
    text = " ".join(str(error).split())
    rust = re.search(r"\(os error (\d+)\)", text)  # safetensors reports system errors as text
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, BrokenExecutor):
        return f"a worker process was killed, most likely because memory ran out; {MORE_MEMORY}"
    if is_memory_error(error):
        advice = MORE_GPU_MEMORY if re.search("CUDA|MPS", text) else MORE_MEMORY
        return f"not enough memory ({text or 'none left'}); {advice}"
    if "No usable temporary directory" in text:
        return "no temporary file can be written; make room in /tmp, or set TMPDIR to a folder with room"
    if isinstance(error, OSError) or rust:
        number = int(rust[1]) if rust else getattr(error, "errno", None)
        where = getattr(error, "filename2", None) or getattr(error, "filename", None)
        parts = [str(where) if where else None, os.strerror(number).lower() if number else text]
        return ": ".join(filter(None, parts)) + (f"; {ADVICE[number]}" if number in ADVICE else "")
    return None
