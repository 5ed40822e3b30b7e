"""What a stage and DVC know about each other: the outs that DVC removes before a run, the inputs that it records after
one, and which stages it will run.
"""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from landmarks.stage.errors import UserError
from landmarks.stage.imports import running_code


def repository() -> Path:
    """The user's repository. It is not the current directory when `dvc exp run --temp` or `--queue` runs a copy."""
    root = Path(os.environ.get("DVC_ROOT", ""))
    return root if Path.cwd().is_relative_to(root.resolve() / ".dvc/tmp/exps") else Path()


def current_inputs() -> dict[Path, bytes]:
    """The contents of params.yaml and of the code that the running stage imports."""
    return {path: path.read_bytes() for path in (Path("params.yaml"), *running_code()) if path.is_file()}


def check_unchanged(before: dict[Path, bytes]) -> None:
    """Raises `UserError` if parameters or code differ from `before`, the `current_inputs` at the start of the stage.

    DVC hashes its inputs again after a stage, so it would record parameters or code that the stage did not use. In
    params.yaml only the keys that dvc.yaml lists for the stage count. Does nothing outside DVC.
    """
    address = os.environ.get("DVC_STAGE")
    if not address:
        return
    for path in [path for path, content in before.items() if path.read_bytes() != content]:
        changed = [path.name]
        if path.name == "params.yaml":
            import yaml

            name, _, key = address.partition("@")
            entry = yaml.safe_load(Path("dvc.yaml").read_bytes())["stages"][name]
            keys = [listed.replace("${key}", key) for listed in entry.get("do", entry).get("params", [])]
            with suppress(yaml.YAMLError):  # a half-finished edit
                old, new = (yaml.safe_load(content) for content in (before[path], path.read_bytes()))
                changed = [listed for listed in keys if value_of(old, listed) != value_of(new, listed)]
        if changed:
            raise UserError(f"{os.path.relpath(path)}: {changed[0]} was changed while the stage ran; run it again")


def value_of(values: object, key: str) -> object:
    """The value of a dotted key, or None."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def outdated(addresses: list[str]) -> list[str]:
    """Those of these stages that `dvc repro` would run, with the inputs that there are now. None outside DVC.

    Leaves out stages that DVC can restore from its cache.
    """
    if not os.environ.get("DVC_STAGE"):
        return []
    from dvc.exceptions import DvcException  # imported here because it is slow
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    logging.getLogger("dvc").setLevel(logging.WARNING)
    found = []
    with Repo() as repo, suppress(DvcException), repo.lock:
        for stage in repo.index.stages:
            if stage.addressing in addresses and stage.changed():
                stage.save_deps()
                for out in stage.outs:
                    out.clear()  # those in dvc.lock have other inputs
                try:
                    repo.stage_cache.restore(stage, dry=True)
                except RunCacheNotFoundError:
                    found.append(stage.addressing)
    return found


def restore_outs() -> None:
    """Restores from the cache the outs that `dvc repro` removed before it ran this stage. Does nothing outside DVC.

    Ignores a second Ctrl-C meanwhile. An out that cannot be restored is recomputed by the next run.
    """
    address = os.environ.get("DVC_STAGE")
    if not address:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from dvc.exceptions import DvcException  # imported here because it is slow
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            for stage in repo.index.stages:
                if stage.addressing == address:
                    for out in stage.outs:
                        if out.use_cache and not out.exists and out.hash_info and not out.changed_cache():
                            out.checkout(force=True)
    except (DvcException, OSError) as error:
        print(f"the previous outs could not be restored ({' '.join(str(error).split())})", file=sys.stderr)
