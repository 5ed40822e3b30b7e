"""An example of a search with Optuna: which weight and which kind of attention give the best validation accuracy?

    .venv/bin/python -m studies.search [TRIALS] [STORAGE]      after `dvc repro`; default: 20 .scratch/search.log

Each trial is an experiment of DVC, in a copy of the repository: `dvc exp show` lists it, and stages that an earlier one
ran are not repeated. STORAGE is a file that records all trials. Several people can share it; each adds trials.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from landmarks import artifacts, stage
from landmarks.serving.cli import free_name, number
from landmarks.stage import UserError
from tools.photos import experiments

import dvc.api

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    sys.exit("search: Optuna is missing; pip install --no-deps -r requirements-team.txt")


def accuracy(trial: optuna.Trial, storage: Path) -> float:
    """The validation accuracy of `abn` with the settings of a trial. Raises `UserError` if the experiment fails."""
    name = free_name(f"{storage.stem}-{trial.number}", experiments())
    trial.set_user_attr("name", name)
    settings = {
        "abn.alpha": trial.suggest_float("abn.alpha", 0.0, 2.0, step=0.25),
        "abn.attention": trial.suggest_categorical("abn.attention", ["residual", "multiply"]),
    }
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, "evaluate"]
    command += [f"--set-param={key}={value}" for key, value in settings.items()]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{name}: the experiment failed, see above")
    return json.loads(dvc.api.read(artifacts.RESULTS.as_posix(), rev=name))["abn"]["val"]["accuracy"]


def main() -> str:
    parser = argparse.ArgumentParser(prog="search", description=__doc__.split("\n")[0])
    parser.add_argument("trials", nargs="?", type=number(1), default=20, metavar="TRIALS")
    parser.add_argument("storage", nargs="?", type=Path, default=Path(".scratch/search.log"), metavar="STORAGE")
    given = parser.parse_args()
    given.storage.parent.mkdir(parents=True, exist_ok=True)
    if given.storage.exists() and not re.match(rb'\Z|\{"op_code"', given.storage.read_bytes()):
        raise UserError(f"{given.storage}: not a record of trials; name another file")
    journal = JournalStorage(JournalFileBackend(str(given.storage)))
    study = optuna.create_study(study_name="abn", direction="maximize", storage=journal, load_if_exists=True)
    for _ in range(given.trials):  # `study.optimize` would print a traceback if an experiment fails
        trial = study.ask()
        study.tell(trial, accuracy(trial, given.storage))
    name = study.best_trial.user_attrs["name"]
    return f"best validation accuracy {study.best_value:.4f} with {study.best_params}, {name}"


if __name__ == "__main__":
    stage.run(main)
