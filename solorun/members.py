"""The processes that are a run: the trainer, what it started, and whatever carries the run's id."""

from __future__ import annotations

from solorun import process
from solorun.owner import Owner, ProcessId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def members(
    owner: Owner | None,
    run_id: str,
    carriers: Callable[[str], Iterable[ProcessId]] = process.carriers,
    parents: Mapping[int, int] | None = None,
) -> list[ProcessId]:
    """Live processes of a run, the trainer first, its supervisor left out.

    Two ways lead to them, and neither finds all: a worker that was forked has the environment of the trainer's own
    start, which names no run when the trainer was started by hand; one in a session of its own, whose parent is gone,
    descends from nobody. A launcher, with all that it started, is of the run that its record names.

    Args:
        owner: who holds the directory; None when the run is over and only its id is known.
        run_id: empty for an old-style trainer.
        carriers: finds live processes by the id.
        parents: what `process.parents` told a moment ago; None to look now.
    """
    found: dict[ProcessId, None] = {}
    if owner is not None:
        for root in (owner.process, owner.launcher):
            if root is not None:
                found.update(dict.fromkeys((root, *process.descendants(root, parents))))
    if run_id:
        found.update(dict.fromkeys(carriers(run_id)))
    supervisor = owner.supervisor if owner else None
    return [member for member in found if member != supervisor and process.is_alive(member)]
