"""What nobody should do with a checkpoint, as a scene: the attack must see it fail."""

from __future__ import annotations

from pathlib import Path

from kssm.checkpoint import checkpoint_path
from tests.faults.shim import Shim
from tests.faults.trainer_scenes import judge, two_checkpoints
from tests.faults.victims import Scene, Stage


def in_place(stage: Stage) -> int:
    """The newest checkpoint is written over, and what the disk says is nobody's."""
    with stage.shim.resting():
        whole = checkpoint_path(stage.results, 2).read_bytes()
    with checkpoint_path(stage.results, 2).open("wb") as file:
        file.write(whole)
    return 0


def warm_up(shim: Shim, room: Path) -> None:
    """Nothing is late here."""


SCENES = (Scene("a save in place", two_checkpoints, in_place, judge),)
