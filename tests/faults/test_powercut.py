"""Power cuts under real runs on a mounted file system; `benchmarks/torture.py` cuts within each change of one."""

from __future__ import annotations

import pytest

from tests.faults.powercut import attack, can_mount, without_fsync

pytestmark = pytest.mark.skipif(bool(can_mount()), reason=can_mount() or "-")


def test_a_disk_whose_power_is_cut_within_a_run_has_every_save_that_was_told() -> None:
    tally = attack(seed=6, share=0.1)
    print(tally)
    assert not tally.failures
    assert tally.cases == 24
    assert tally.facts["cuts within a run"] >= 20


def test_the_disk_shows_that_nothing_was_made_durable() -> None:
    assert any("was told as saved" in line for line in without_fsync())
