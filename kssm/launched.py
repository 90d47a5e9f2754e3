"""How this process was started: alone, or by torchrun as one of several ranks. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from kssm.errors import BadUsage

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_IN_VAIN = (2, 3, 4, 7)
"""Exit codes of a start that would end the same way again: wrong flag, held, accelerator in use, refused."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One of the processes that a launcher started as one run.

    Args:
        rank: 0 holds the directory and writes; the others follow it.
        world: processes of the run.
        local_rank: among those of this machine.
        local_world: processes of the run on this machine.
        launcher: PID of torchrun; 0 for a launcher that only sets the environment.
        attempt: how often torchrun has restarted the ranks.
        restarts_left: how often it would do so again.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    launcher: int = 0
    attempt: int = 0
    restarts_left: int = 0

    @property
    def is_orphaned(self) -> bool:
        """Whether torchrun is gone: it can no longer end the ranks, so they end by themselves."""
        return self.launcher != 0 and os.getppid() != self.launcher

    def end_launcher(self, code: int, *, stopped: bool) -> None:
        """Keep torchrun from starting the ranks anew after a stop, or after a refusal that would come again.

        To torchrun every exit code but 0 is a failure, which `--max-restarts` answers with a restart.

        Args:
            code: what this process is going to exit with.
            stopped: whether the ranks agreed to stop.
        """
        if self.restarts_left and self.local_rank == 0 and not self.is_orphaned and (stopped or code in _IN_VAIN):
            os.kill(self.launcher, signal.SIGTERM)


def launched(environment: Mapping[str, str]) -> Launch | None:
    """What the launcher said in the environment; None for a process that was started alone.

    Raises:
        BadUsage: it makes no sense.
    """
    if not all(environment.get(name) for name in _NEEDED):
        return None
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    elastic = "TORCHELASTIC_RUN_ID" in environment
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    found = Launch(
        rank=rank,
        world=world,
        local_rank=_number(environment, "LOCAL_RANK", rank),
        local_world=_number(environment, "LOCAL_WORLD_SIZE", world),
        launcher=os.getppid() if elastic else 0,
        attempt=attempt,
        restarts_left=max(_number(environment, "TORCHELASTIC_MAX_RESTARTS", 0) - attempt, 0) if elastic else 0,
    )
    if found.rank >= found.world:
        raise BadUsage(f"RANK {rank} of WORLD_SIZE {world}: ranks count from 0", "start it with torchrun")
    return found


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise BadUsage(f"{name} is {text!r} in the environment; it is a number", f"use torchrun, or unset {name}")
    return int(text)
