"""Hashes everything in DVC's cache anew, and throws away what is no longer what it was: `make check-cache`.

DVC trusts its cache: a file there that has rotted on the disk, or was written to through a link in data/ or models/, is
handed out again and again, and even when DVC sees that the link in the workspace has changed, it restores it from that
very file. Here such objects are removed, and their links touched, so that the next `dvc repro` makes them again. Exit
status 1 if there were any.
"""

import hashlib
import os
import re
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError

from dvc.repo import Repo


def damaged(path: Path) -> bool:
    """Whether a cache object is not what its name, the MD5 of its content, says."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() != path.parent.name + path.stem


def main() -> str:
    with Repo() as repo:
        cache = Path(repo.cache.local.path)
        outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    objects = [path for path in sorted(cache.glob("??/*")) if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)]
    bad = [path for path in objects if damaged(path)]
    for path in bad:
        os.utime(path)  # and so of its links, which DVC then hashes as well
        path.unlink()
    for out in outs:
        for path in [out, *out.rglob("*")]:
            if path.is_file() and path.stat().st_nlink == 1:
                os.utime(path)  # a copy, for DVC to hash
    if bad:
        raise UserError(
            f"{len(bad)} of {len(objects)} cache objects were damaged and are gone; dvc repro makes them again"
        )
    return f"{len(objects)} cache objects are what they were"


if __name__ == "__main__":
    stage.run(main)
