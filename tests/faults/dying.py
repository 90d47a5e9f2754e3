"""A trainer that ends at one exact point of one exact step: by a real SIGKILL or SIGINT that it sends to itself.

`arm` is called in the trainer's process before it begins; what it changes there sends the signal and nothing else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

FLAG = "--die="
ROOM = "--room="
"""Followed by STEP:ROWS. From that step on, more rows than these at a time do not fit the memory."""

KILLS = ("in a step", "before the update", "after a step")
KILLS_OF_A_SAVE = ("in the save", "before the save is durable", "after the save")
KILLS_OF_AN_EVALUATION = ("in an evaluation",)
STOPS = ("stop in a step", "stop after a step")


def arm(words: list[str]) -> None:
    """Take what is meant for this room out of a command line, and see to it."""
    for word in [word for word in words if word.startswith((FLAG, ROOM))]:
        words.remove(word)
        name, _, rest = word.partition("=")
        if name + "=" == ROOM:
            _narrow(*map(int, rest.split(":")))
        else:
            kind, _, step = rest.partition(":")
            _POINTS[kind](int(step))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Have something happen before each call of a function."""
    plain = getattr(owner, name)

    def armed(*args: Any, **more: Any) -> Any:
        act(*args, **more)
        return plain(*args, **more)

    setattr(owner, name, armed)


def _in_step(step: int, at_micro_batch: int, act: Callable[[], None]) -> None:
    from kssm.step import Stepper

    def at(_self: Any, of: int, micro_batch: int, *_rest: Any, **_more: Any) -> None:
        if of == step - 1 and micro_batch == at_micro_batch:
            act()

    _before(Stepper, "_add_gradient", at)


def _before_update(step: int) -> None:
    from kssm.step import Stepper

    _before(Stepper, "_require_finite", lambda _self, of, *_rest: _die() if of == step - 1 else None)


def _after_step(step: int, act: Callable[[], None]) -> None:
    from kssm.loop import Loop

    _before(Loop, "_measure", lambda _self, of, *_rest: act() if of == step else None)


def _in_save(step: int, name: str) -> None:
    from kssm.atomicfile import PrivateFile

    calls = 0

    def at(file: Any, *_rest: Any) -> None:
        nonlocal calls
        calls += f".checkpoint_{step}." in file.path.name
        if calls == (3 if name == "write" else 1):
            _die()

    _before(PrivateFile, name, at)


def _after_save(step: int) -> None:
    from kssm import checkpoint

    _before(checkpoint, "prune", lambda _where, _keep, _lineage, newest: _die() if newest == step else None)


def _in_evaluation(step: int) -> None:
    from kssm import loop

    here = 0

    def note(self: Any, *_rest: Any) -> None:
        nonlocal here
        here = self.state.step

    _before(loop.Loop, "_evaluate", note)
    _before(loop, "evaluate", lambda *_words, **_more: _die() if here == step else None)


def _narrow(step: int, rows: int) -> None:
    import torch

    from kssm.step import Stepper

    def refuse(_self: Any, of: int, _micro_batch: int, part: Any, *_rest: Any, **_more: Any) -> None:
        if of >= step and len(part) > rows:
            raise torch.OutOfMemoryError

    _before(Stepper, "_add_gradient", refuse)


_POINTS: dict[str, Callable[[int], None]] = {
    "in a step": lambda step: _in_step(step, 1, _die),
    "before the update": _before_update,
    "after a step": lambda step: _after_step(step, _die),
    "in the save": lambda step: _in_save(step, "write"),
    "before the save is durable": lambda step: _in_save(step, "sync"),
    "after the save": _after_save,
    "in an evaluation": _in_evaluation,
    "stop in a step": lambda step: _in_step(step, 0, _stop),  # it is heard before the second micro-batch
    "stop after a step": lambda step: _after_step(step, _stop),
}
