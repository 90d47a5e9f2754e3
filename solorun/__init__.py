"""One training run at a time per results directory: the guard, for trainers and for people.

A trainer holds its directory, or is refused with the reason:

    with solorun.hold("results/mine") as run:
        for step in range(first, total):
            ...
            run.progress(step, total, loss=loss)
            if run.should_stop:
                break
        with run.phase("saving"):
            save()
"""

from solorun.errors import Held, NotSafe, Refused, SolorunError, explain
from solorun.hold import Run, hold
from solorun.sharing import require_accelerator

__all__ = ["Held", "NotSafe", "Refused", "Run", "SolorunError", "__version__", "explain", "hold", "require_accelerator"]

__version__ = "0.1.0"
