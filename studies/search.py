"""An example of a search with Optuna: which weight and which kind of attention give the best validation accuracy?

    .venv/bin/python -m studies.search [TRIALS] [STORAGE]      after `dvc repro`; 20 trials, .scratch/search.log

Each trial is an experiment of DVC, in a copy of the repository: `dvc exp show` lists it, and stages that an earlier one
ran are not repeated. STORAGE is a file in a directory that several people may share; each adds trials.
"""

import json
import subprocess
import sys
from pathlib import Path

from landmarks import artifacts, stage

import dvc.api

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    sys.exit("search: Optuna is missing; pip install --no-deps -r requirements-team.txt")


def accuracy(trial: optuna.Trial) -> float:
    """The validation accuracy of `abn` with the settings of a trial."""
    name = f"search-{trial.number}"
    settings = {
        "abn.alpha": trial.suggest_float("abn.alpha", 0.0, 2.0, step=0.25),
        "abn.attention": trial.suggest_categorical("abn.attention", ["residual", "multiply"]),
    }
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--force", "--name", name, "evaluate"]
    subprocess.run([*command, *(f"--set-param={key}={value}" for key, value in settings.items())], check=True)
    return json.loads(dvc.api.read(artifacts.RESULTS.as_posix(), rev=name))["abn"]["val"]["accuracy"]


def main() -> str:
    trials, storage = (*sys.argv[1:], *("20", ".scratch/search.log")[len(sys.argv) - 1 :])
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    journal = JournalStorage(JournalFileBackend(storage))
    study = optuna.create_study(study_name="abn", direction="maximize", storage=journal, load_if_exists=True)
    study.optimize(accuracy, n_trials=int(trials))
    return f"best validation accuracy {study.best_value:.4f} with {study.best_params}, search-{study.best_trial.number}"


if __name__ == "__main__":
    stage.run(main)
