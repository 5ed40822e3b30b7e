"""The frame around every stage: one-line errors, outputs that are complete or absent, progress bars.

Guarantees: a user's mistake or a failure of the machine prints one line, and the exit status is not 0. A failed run
restores the outs that DVC removed before it. An output appears under its name only when it is complete. A stage does
not outlive the DVC process that runs it.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from landmarks.stage.errors import UserError, explain
from landmarks.stage.outputs import atomic_output, check_targets, fingerprint, lock, remove, scratch
from landmarks.stage.pipeline import check_unchanged, current_inputs, outdated, repository, restore_outs
from landmarks.stage.pool import run_in_processes
from landmarks.stage.progress import count_reasons, progress
from landmarks.stage.signals import (
    SIGNAL_OUTCOMES,
    Terminated,
    exit_with_parent,
    handle_early_signals,
    on_signal,
    received_signals,
)

__all__ = [
    "UserError",
    "atomic_output",
    "check_targets",
    "count_reasons",
    "fingerprint",
    "lock",
    "outdated",
    "progress",
    "remove",
    "repository",
    "run",
    "run_in_processes",
    "scratch",
]

inputs: dict[Path, bytes] = {}  # of the stage that this process runs, read before its imports, which take seconds
script = sys.modules["__main__"].__spec__
if os.environ.get("DVC_STAGE") and script and script.name.startswith("stages."):
    exit_with_parent(os.getppid())
    handle_early_signals()
    inputs = current_inputs()


def run(main: Callable[[], str]) -> None:
    """Runs a stage's `main`, prints the summary line that it returns, and exits.

    Prints one line on stderr for a `UserError`, an error of the system and too little memory (exit status 1), for
    Ctrl-C (130) and for SIGTERM (143). Any other exception is a bug in this project and keeps its traceback.
    """
    name = os.environ.get("DVC_STAGE") or Path(sys.argv[0]).stem.replace("_", "-")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: the terminal may not show every character
    for number in SIGNAL_OUTCOMES:
        signal.signal(number, on_signal)
    try:
        if received_signals:  # an import has swallowed its exception
            raise SIGNAL_OUTCOMES[received_signals[0]][0]
        before = inputs or current_inputs()
        summary = main()
        check_unchanged(before)
        gc.freeze()  # saves half a second at exit, in which Python would scan all of torch's objects
        return print(f"{name}: {summary}")
    except (Exception, KeyboardInterrupt, Terminated) as error:
        received = next(iter(received_signals), signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
        _, status, text = SIGNAL_OUTCOMES[received] if received else (None, 1, explain(error))
        restore_outs()
        if text is None:
            raise
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(status)
