"""A long run on the plays that is killed goes on from its checkpoint, to the result of an unbroken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import learner, plays
from benchmarks.contestants import PLAYS
from benchmarks.learner import KssmLearner

STEPS = 6
TEXT = np.random.default_rng(0).integers(0, 30, 4_000)
PART = SimpleNamespace(tokens=1_000, bytes=3_000)
CORPUS: Any = SimpleNamespace(
    train=TEXT[:3_000], validation=TEXT[3_000:], vocabulary=30, facts=SimpleNamespace(validation=PART, source="a text")
)
SMALL = replace(PLAYS[1], shape={"hidden": 32, "layers": 2, "oscillators": 16}, rows=2, length=32)


def run(into: Path) -> plays._Run:
    return plays._Run(SMALL, 1e-2, 1.0, into, CORPUS)


def test_a_killed_run_goes_on_to_the_result_of_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "_SAVE_S", -1)
    monkeypatch.setattr(plays._Run, "_affordable", lambda _self: STEPS)
    whole = run(tmp_path / "whole.json")()
    taken: list[int] = []
    step = KssmLearner.step

    def killed(self: KssmLearner, number: int) -> float:
        taken.append(number)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(learner.KssmLearner, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.json")()
    again = run(tmp_path / "broken.json")
    found = again()
    assert taken == [0, 1, 2, 3, 3, 4, 5], "from the step that was not finished"
    assert found["bits_per_byte"] == whole["bits_per_byte"]
    assert found["long"] == whole["long"]
    again.end(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "whole.checkpoint"]
