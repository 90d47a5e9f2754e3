"""The proof that a maker of an operator works on this machine.

A kernel may fail to build, to load, or to be right: another compiler, another driver, another processor. So it is tried
once, at the start, before anything depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Unavailable(Exception):
    """A maker cannot work here; the text says why, for people."""


def tried(kind: str, make: Callable[[], Made], furthest_off: Callable[[Made], str]) -> Made:
    """A maker that has just computed a small input rightly.

    Args:
        kind: what it is called: native, triton, metal.
        make: builds or loads it.
        furthest_off: what of its outcome is too far from the definition in float64; nothing, if it is right.

    Raises:
        Unavailable: it cannot be built, fails, or is wrong.
    """
    try:
        made = make()
        off = furthest_off(made)
    except Unavailable:
        raise
    except Exception as error:  # a compiler's, a driver's, a loader's: none shares a type with another
        reason = next(iter(str(error).strip().splitlines()), "")
        raise Unavailable(f"the {kind} kernel fails here: {type(error).__name__}: {reason[:160]}") from None
    if off:
        raise Unavailable(f"the {kind} kernel computes wrongly here: {off}")
    return made


def first_off(outcomes: Iterable[tuple[str, Tensor, Tensor]], allowed: float) -> str:
    """The first of some outcomes that is too far from the truth, in words; nothing, if none is.

    Args:
        outcomes: of each its name, what was computed, and the truth in float64.
        allowed: how far off one may be, as a share of the truth's largest number.
    """
    for what, got, right in outcomes:
        off = (got.cpu().double() - right).abs().max() / right.abs().max()
        if not off <= allowed:  # also where it is no number
            return f"{what} are off by {off:.0e} of the largest"
    return ""
