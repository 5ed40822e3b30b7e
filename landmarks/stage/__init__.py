"""The frame around every stage: one-line errors, outputs that are whole or absent, progress bars.

Guarantees: a mistake of the user's or a failure of the machine prints one line and ends with a status above 0; what
DVC removed to make room for the failed run is put back as dvc.lock records it; an output appears under its name only
when it is complete; a stage does not outlive the DVC that runs it.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from landmarks.stage.errors import UserError, explain
from landmarks.stage.outputs import remove, scratch, whole
from landmarks.stage.pipeline import check_unchanged, current_inputs, restore_outs
from landmarks.stage.pool import workers
from landmarks.stage.progress import progress, tally
from landmarks.stage.signals import ENDS, Terminated, end_with_parent, hear, heard, interrupted

__all__ = ["UserError", "explain", "progress", "remove", "run", "scratch", "tally", "whole", "workers"]

if os.environ.get("DVC_STAGE"):
    sys.excepthook = interrupted


def run(main: Callable[[], str]) -> None:
    """Runs a stage's `main`, prints the summary line that it returns, and exits.

    A `UserError`, a full or read-only disk, and want of memory become one line on stderr and exit status 1, Ctrl-C one
    with status 130, SIGTERM one with 143. Anything else is our bug and keeps its traceback.
    """
    name = os.environ.get("DVC_STAGE") or Path(sys.argv[0]).stem.replace("_", "-")
    for number in ENDS:
        signal.signal(number, hear)
    if os.environ.get("DVC_STAGE"):
        end_with_parent(os.getppid())
    before = current_inputs()
    try:
        summary = main()
        check_unchanged(before)
        gc.freeze()  # or Python looks through all of torch's objects once more at its end: half a second
        return print(f"{name}: {summary}")
    except (Exception, KeyboardInterrupt, Terminated) as error:
        ended = heard[0] if heard else signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        _, status, text = ENDS[ended] if ended else (None, 1, explain(error))
        restore_outs()
        if text is None:
            raise
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(status)
