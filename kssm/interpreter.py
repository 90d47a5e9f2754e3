"""Which Python runs the trainers: `python3 kssm/train_kssm_v3.py` must work with whatever `python3` is."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_MARK = "KSSM_ENVIRONMENT"


def use_project_environment(root: Path) -> None:
    """Go on in the project's own `.venv` when this Python has no torch. The PID stays, so `echo $!` stays true.

    Args:
        root: the project's root.
    """
    ours = root / ".venv" / "bin" / "python3"
    if importlib.util.find_spec("torch") is not None or not ours.exists() or os.environ.get(_MARK):
        return
    os.environ[_MARK] = "1"  # once only: a broken environment must end in a message, not in a circle
    os.execv(ours, [str(ours), *sys.argv])  # noqa: S606 - replaces this process, no shell
