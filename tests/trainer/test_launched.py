"""How a process was started is read from what launchers put into the environment; a stray variable starts no group."""

from __future__ import annotations

import os

import pytest

from kssm.errors import BadUsage
from kssm.launched import Launch, launched

BY_HAND = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {
    **BY_HAND, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3",
}  # fmt: skip


def test_torchrun_says_all() -> None:
    assert launched(TORCHRUN) == Launch(1, 4, 1, 2, launcher=os.getppid(), attempt=1, restarts_left=2)


def test_another_launcher_is_never_signalled_nor_watched() -> None:
    found = launched(BY_HAND)
    assert found == Launch(1, 4, 1, 4)
    assert not found.is_orphaned
    found.end_launcher(143, stopped=True)  # reaches nobody


@pytest.mark.parametrize("left_out", BY_HAND)
def test_half_of_it_is_a_process_of_its_own(left_out: str) -> None:
    assert launched({name: value for name, value in BY_HAND.items() if name != left_out}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "first"}, {"WORLD_SIZE": "-1"}])
def test_nonsense_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(BadUsage):
        launched({**BY_HAND, **wrong})
