"""What a person asked of `kssm evaluate`. Knows nothing of torch, so that a slip of the pen is told at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kssm.errors import BadUsage

Place = Literal["state", "readout"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that is set in the model.

    Args:
        what: R, the order parameter of the oscillators, or k, their coupling.
        value: R in [0, 1]; k in [0, 1] for v4, K in [0, 2] for v2 and v3.
    """

    what: Literal["R", "k"]
    value: float

    def __str__(self) -> str:
        return f"{self.what} = {self.value:g}"


@dataclass(frozen=True, slots=True)
class Asked:
    """How the held-out text is to be read, and what is set meanwhile.

    Args:
        batches: how many; None reads 20, or the whole text where the state is carried.
        length: S, tokens in a row; None takes that of the training.
        carry_state: one stream from the first token on, instead of windows spread over the text.
        settings: one after the other, each beside its controls.
        at: where phases are set; None is the state where the model has one, else the readout.
    """

    batches: int | None = None
    length: int | None = None
    carry_state: bool = False
    settings: tuple[Setting, ...] = ()
    at: Place | None = None

    def __post_init__(self) -> None:
        for flag, value, example in (("--batches", self.batches, 20), ("--length", self.length, 256)):
            if value is not None and value < 1:
                kind = "batches" if flag == "--batches" else "tokens"
                raise BadUsage(f"{flag} counts {kind}, 1 or more", f"write, for example, {flag} {example}")
        if self.at is not None and not any(setting.what == "R" for setting in self.settings):
            raise BadUsage("--at tells where R is set, and none is", f"write --intervene R=0.5 --at {self.at}")


def settings_of(texts: Iterable[str]) -> tuple[Setting, ...]:
    """The settings in words like `R=0,0.5,1` and `k=0`.

    Raises:
        BadUsage: a word of another form, or a value that cannot be.
    """
    return tuple(setting for text in texts for setting in _settings(text))


def _settings(text: str) -> list[Setting]:
    what, sign, values = text.partition("=")
    if not sign or what not in ("R", "k"):
        raise BadUsage(
            f"--intervene {text}: only R, the order parameter, and k, the coupling, can be set",
            "write, for example, --intervene R=0.9 or --intervene k=0,0.5",
        )
    return [Setting(what, _value(text, what, word)) for word in values.split(",")]  # type: ignore[arg-type] # seen above


def _value(text: str, what: str, word: str) -> float:
    most = 1 if what == "R" else 2
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise BadUsage(
            f"--intervene {text}: {word!r} is no value of {what}, which lies in 0 to {most}",
            f"write, for example, --intervene {what}=0.5",
        )
    return value
