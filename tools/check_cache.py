"""Hashes every object in DVC's cache again and deletes the damaged ones: `make check-cache`.

DVC trusts its cache. An object that the disk has damaged, or that was written to through its link in data/ or models/,
is used again and again. This command deletes such objects, so that the next `dvc repro` makes them again. The exit
status is 1 if there were any.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError

from dvc.exceptions import DvcException
from dvc.repo import Repo


def is_damaged(path: Path) -> bool:
    """Whether the MD5 of a cache object differs from its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() != path.parent.name + path.stem


def main() -> str:
    try:
        with Repo() as repo:
            cache = Path(repo.cache.local.path)
            outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline ({error}); correct that first") from None
    objects = [path for path in sorted(cache.glob("??/*")) if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)]
    damaged = [path for path in objects if is_damaged(path)]
    links = {(facts.st_dev, facts.st_ino) for facts in map(os.stat, damaged)}
    for path in damaged:
        with suppress(PermissionError):  # of another user, in a shared cache
            os.utime(path)  # also the time of its links in other clones, which makes DVC hash them again
        path.unlink()
    for out in outs:
        for path in (out, *out.rglob("*")):
            if not path.is_file():
                continue
            facts = path.stat()
            if (facts.st_dev, facts.st_ino) in links:
                path.unlink()
            elif facts.st_nlink == 1:
                os.utime(path)  # a copy instead of a link: DVC hashes it again
    if damaged:
        raise UserError(f"{len(damaged)} of {len(objects)} cache objects were damaged and deleted; run dvc repro")
    return f"{len(objects)} cache objects are intact"


if __name__ == "__main__":
    stage.run(main)
