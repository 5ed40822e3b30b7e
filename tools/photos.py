"""Trains on a folder of photographs, as a DVC experiment: `make photos ROOT=/my/pictures`.

    .venv/bin/python -m tools.photos ROOT [--recipe NAME] [-S KEY=VALUE ...]

Prints and runs one `dvc exp run`, which removes the ablations and sets the keys of a recipe of recipes.yaml, then those
of -S. Checks all settings first, because DVC leaves those of a failed run in params.yaml.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from landmarks import artifacts, params, report, scan, stage, weights
from landmarks.serving import cli
from landmarks.sources.folder import open_folder
from landmarks.sources.index import read_ids
from landmarks.stage import UserError
from landmarks.stage.errors import explain

import pandas as pd
import yaml

RECIPES = Path("recipes.yaml")


def version(root: Path, only: str | None = None) -> str:
    """A hash that changes when a picture of `root` is added, removed, renamed or changed, or the list `only` changes.

    Raises `UserError` as `open_folder` does, for a folder that the pipeline cannot use.
    """
    listed = ["images.csv"] if (root / "images.csv").is_file() else []
    digest = hashlib.sha256()
    for name in [*open_folder(root).files["file"], *listed, *([os.path.abspath(only)] if only else [])]:
        try:
            facts = (root / name).stat()
            readable = os.access(root / name, os.R_OK)
            size, time = (facts.st_size, facts.st_mtime_ns) if readable else (0, 0)
        except (OSError, ValueError):  # images.csv names a file that is missing; the pipeline counts it
            size = time = 0
        digest.update(os.fsencode(f"{name}\0{size}\0{time}\0"))
    return f"v{digest.hexdigest()[:12]}"  # with a letter first, because YAML would read some hashes as numbers


def experiments() -> dict[str, int]:
    """The names of DVC's experiments in lower case, as `cli.free_name` takes them."""
    names = output("git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps")
    return dict.fromkeys(names.casefold().split(), 1)


def free_name(root: Path, taken: dict[str, int]) -> str:
    """The name of the experiment: photos-FOLDER, or the first of photos-FOLDER-2, -3... that is not taken.

    The prefix keeps it apart from the names of branches and commits. It has only characters that git accepts in names.
    """
    name = re.sub(r"[\W_]+", "-", f"photos-{root.name}")[:50].strip("-")
    return cli.free_name(name, taken)


def read_recipes() -> dict[str, dict[str, str]]:
    """recipes.yaml. Raises `UserError` if it is not what the comments in it say."""
    try:
        recipes = yaml.load(RECIPES.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506 - values stay text
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{RECIPES}: not YAML: {error}") from None
    if not isinstance(recipes, dict):
        raise UserError(f"{RECIPES}: must have a name for each recipe")
    for name, recipe in recipes.items():
        if not isinstance(recipe, dict) or not all(isinstance(value, str) for value in recipe.values()):
            raise UserError(f"{RECIPES}: {name}: each value must be one text; put lists in quotes")
    return recipes


def quote(text: str) -> str:
    """A text as a value of `dvc exp run -S`, whose grammar is Hydra's."""
    if re.fullmatch(r"/[\w/.-]+", text, re.ASCII):
        return text
    escaped = re.sub(r"(\\*)('|\$\{|\Z)", lambda found: 2 * found[1] + (found[2] and "\\" + found[2]), text)
    return f"'{escaped}'"


def settings(root: Path, recipe: dict[str, str], changes: list[str], ablations: Iterable[str]) -> list[str]:
    """The arguments -S of `dvc exp run`: no `ablations`, the recipe, the folder, and `changes`.

    If a key occurs more than once, DVC takes its last value.
    """
    removed = [f"~ablations.{name}" for name in ablations]
    values = recipe | {"data.root": quote(str(root))}
    return [word for pair in [*removed, *map("=".join, values.items()), *changes] for word in ("-S", pair)]


def changed(changes: list[str]) -> params.Params:
    """params.yaml with these values of -S, in memory. Raises `UserError` if they are wrong."""
    from dvc.exceptions import DvcException  # imported here because DVC is slow
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml import YAMLError

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy("params.yaml", folder))
        try:
            apply_overrides(copy, changes)
        except (DvcException, OmegaConfBaseException, YAMLError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
            raise UserError(f"ARGS: {reason}; give -S KEY=VALUE with a key of params.yaml") from None
        try:
            return params.load(copy)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{copy}: ")) from None


def identity() -> dict[str, str]:
    """The environment variables that DVC needs for the commits of experiments, if git does not know the user."""
    return {
        f"GIT_{who}_{what.upper()}": os.environ.get(f"GIT_{who}_{what.upper()}", "landmarks")
        for what in ("name", "email")
        if not output("git", "config", f"user.{what}")
        for who in ("AUTHOR", "COMMITTER")
    }


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    recipes = read_recipes()
    parser = argparse.ArgumentParser(prog="photos")
    parser.add_argument("root", metavar="ROOT", help="the folder of the pictures")
    parser.add_argument("--recipe", default="photos", help="of recipes.yaml (default: photos)")
    parser.add_argument("-S", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="of params.yaml")
    args = parser.parse_args(arguments)
    if args.recipe not in recipes:
        raise UserError(f"{RECIPES}: no recipe {args.recipe}; choose from {', '.join(recipes)}")
    if not args.root:
        raise UserError("ROOT: missing; make photos ROOT=/my/pictures")
    root = Path(os.path.abspath(os.path.expanduser(args.root)))
    if str(root) != (shown := scan.printable(str(root))):
        raise UserError(f"ROOT: {shown} has characters that params.yaml cannot hold; rename it")
    if not os.path.isdir(root):
        raise UserError(f"ROOT: {root} is not a directory; name one with a directory of pictures per landmark")
    if output("git", "ls-files", "--others", "--exclude-standard", "--directory", "--", str(root)):
        raise UserError(f"ROOT: {root} is in the repository, where DVC may replace it; move it, or let git ignore it")
    name = free_name(root, experiments())
    ablations = params.load().ablations
    changes = settings(root, recipes[args.recipe], args.settings, ablations)
    p = changed(changes[1::2])
    if (p.data.source, p.data.root) != ("folder", str(root)):
        raise UserError("ARGS: ROOT sets data.source and data.root; leave them out")
    if p.data.only:
        read_ids(Path(p.data.only), p.data.only)
    if weights.find(p.backbone.weights, p.backbone.name) is None and not Path(p.backbone.weights).is_file():
        raise UserError(f"backbone.weights: {p.backbone.weights}: no such file or set of weights; correct it")
    stamp = version(root, p.data.only)
    run = ["exp", "run", "--name", name, "-S", f"data.version={stamp}", *changes]
    print(shlex.join(["dvc", *run]), flush=True)
    for ablation, folder in product(ablations, (artifacts.MODELS, artifacts.LOGS)):
        stage.remove(folder / ablation)  # DVC, which has them in its cache, may forget to
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for DVC, which ends its stages
    done = subprocess.run([sys.executable, "-m", "dvc", *run], env=os.environ | identity(), check=False)
    if done.returncode == 0:
        best = report.best(pd.read_parquet(artifacts.PREDICTIONS))
        print(f"photos: experiment {name} is done. Its report: {artifacts.REPORT.absolute()}")
        print(f"photos: its best model on validation pictures is {best}: landmarks predict PHOTO --model {best}")
        restore = "git stash && dvc checkout --allow-missing && dvc repro"  # without checkout, repro computes all again
        print(f"photos: `dvc exp list -A` lists all; `{restore}` brings the results of the last commit back")
    else:
        restore = "`git restore params.yaml dvc.lock && dvc checkout --allow-missing` brings back the committed state"
        restore += ", and drops your own changes"
        print(f"photos: params.yaml may have the settings of this run; {restore}", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.exit(f"photos: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
