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

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from solorun.errors import Held, NotSafe, Refused, SolorunError, explain
    from solorun.follower import Follower
    from solorun.hold import Run, hold
    from solorun.sharing import require_accelerator

__all__ = [
    "Follower", "Held", "NotSafe", "Refused", "Run", "SolorunError", "__version__", "explain", "hold",
    "require_accelerator",
]  # fmt: skip

__version__ = "0.1.0"

if not TYPE_CHECKING:
    ModuleType = type(sys)  # the module `types` costs a status more than this file does


class _Package(ModuleType):
    """Loads the public names when they are asked for: a `solorun status` need not wait for what a trainer needs."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        rooms = {"Follower": "follower", "Run": "hold", "hold": "hold", "require_accelerator": "sharing"}
        room = rooms.get(name, "errors")
        value = getattr(import_module(f"solorun.{room}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of the room `solorun.hold` puts the room where its class belongs.
        if name == "hold" and isinstance(value, ModuleType):
            value = value.hold
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *__all__})


sys.modules[__name__].__class__ = _Package
