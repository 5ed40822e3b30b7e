"""MD5 whose state can be kept on disk, so that a tar is hashed on from where an interrupted run had come.

hashlib cannot do that. OpenSSL's own MD5, which hashlib stands on, keeps its state in 92 bytes of plain memory
(MD5_CTX in openssl/md5.h); where Python was built without access to it, `Md5.state` is None and a tar begins anew.
"""

import _hashlib
import ctypes
import hashlib

SIZE = 92
try:
    OPENSSL = ctypes.CDLL(_hashlib.__file__)
    FUNCTIONS = OPENSSL.MD5_Init, OPENSSL.MD5_Update, OPENSSL.MD5_Final
except (AttributeError, OSError):
    FUNCTIONS = None


class Md5:
    """As hashlib.md5, but for `state`, from which another one goes on."""

    def __init__(self, state: bytes | None = None) -> None:
        self.context = ctypes.create_string_buffer(state or b"", SIZE)
        self.plain = None if FUNCTIONS else hashlib.md5(usedforsecurity=False)
        if FUNCTIONS and state is None:
            FUNCTIONS[0](self.context)

    @property
    def state(self) -> bytes | None:
        return None if self.plain else self.context.raw

    def update(self, data: bytes) -> None:
        if self.plain:
            self.plain.update(data)
        else:
            FUNCTIONS[1](self.context, data, ctypes.c_size_t(len(data)))

    def hexdigest(self) -> str:
        """The sum of all that came, once: the state is used up."""
        if self.plain:
            return self.plain.hexdigest()
        digest = ctypes.create_string_buffer(16)
        FUNCTIONS[2](digest, self.context)
        return digest.raw.hex()
