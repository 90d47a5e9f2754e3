"""Power cuts: a sample of the disks that may be left; `benchmarks/torture.py` looks at all of them."""

from __future__ import annotations

import pytest

from tests.faults.power import attack, blind
from tests.faults.recorded import can_record

pytestmark = pytest.mark.skipif(bool(can_record()), reason=can_record() or "-")


def test_whatever_a_power_cut_leaves_the_next_start_needs_no_hand_and_has_every_save_that_was_told() -> None:
    tally = attack(seed=6, share=0.012)
    print(tally)
    assert not tally.failures
    assert tally.cases >= 300
    assert tally.facts["different disks"] >= 200


def test_every_fsync_that_a_promise_rests_on_is_missed_when_it_is_left_out() -> None:
    found = blind(seed=6)
    # A token file is checked to its last byte at each start, its tokenizer by a fingerprint, and both can be made again
    # of the text: their fsyncs save time, not data.
    needless = {f"a token file: {what}" for what in ("names", "tokens", "tokenizer.json")}
    assert {name for name, is_seen in found.items() if not is_seen} <= needless
    assert {name.partition(": ")[2] for name, is_seen in found.items() if is_seen} == {
        "best_model.safetensors", "checkpoint", "names", "run.json",
    }  # fmt: skip
