"""Who takes part in the comparison of models: one table, the place to change shapes, rates and lengths.

Rates are only where the search begins: while the best one is the outermost, the grid grows on that side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

STEPS, ROWS, LENGTH = 2_000, 12, 64
WARM_UP = 100
TUNING_SEED, SEEDS = 0, (1, 2, 3)
TUNING_PART = 4
"""A rate is tried in a run of this part of the steps, with the whole schedule in it."""

LONG = 1_024
"""Characters of the long blocks that models without a longest text are evaluated in as well."""

FAST_ENOUGH = 0.97
"""A model of this speed or more against the GPT's needs no shorter runs for equal CPU seconds: its own take no more."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model and how it is trained.

    Args:
        name: in file names.
        title: for people.
        model: gpt, v2, v3 or v4.
        shape: changes to v2's, v3's or v4's tiny preset; the GPT's shape.
        rates: where the search for the learning rate begins, a geometric series; empty takes the rate of `like`.
        like: whose rate and shape these are, where the training alone differs.
        kind: main (a model of its own), long (v4 trained otherwise), short (a shorter schedule), seconds (a schedule
            of the GPT's CPU seconds).
        steps: optimizer steps.
        rows: texts per step.
        length: characters per text.
        carried: whether each text goes on where the step before left it.
    """

    name: str
    title: str
    model: str
    shape: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    like: str = ""
    kind: str = "main"
    steps: int = STEPS
    rows: int = ROWS
    length: int = LENGTH
    carried: bool = False

    def facts(self) -> dict[str, Any]:
        """What a result depends on, beside rate and seed; as JSON gives it back."""
        told = {name: value for name, value in asdict(self).items() if name not in ("title", "rates", "like", "kind")}
        return {**told, "shape": dict(self.shape)}


_V4 = {"hidden": 128, "layers": 4, "oscillators": 64}
_RATES = (3.5e-3, 7e-3, 1.4e-2)

GPT = Contestant(
    "gpt", "GPT", "gpt", {"hidden": 128, "layers": 4, "heads": 4, "positions": LENGTH}, (1.5e-3, 3e-3, 6e-3)
)
V4 = Contestant("v4", "v4", "v4", _V4, _RATES)

_MAIN = (
    GPT,
    V4,
    Contestant("v4-uncoupled", "v4 without coupling", "v4", {**_V4, "coupled": False}, _RATES),
    Contestant("v4-unrotated", "v4 without rotation", "v4", {**_V4, "rotating": False}, _RATES),
    Contestant("v4-neither", "v4 without both", "v4", {**_V4, "coupled": False, "rotating": False}, _RATES),
    Contestant(
        "v3", "v3", "v3", {"hidden": 132, "layers": 5, "oscillators": 64, "harmonics": 32, "positions": LENGTH}, _RATES
    ),
    Contestant(
        "v2", "v2", "v2", {"hidden": 144, "layers": 4, "oscillators": 64, "positions": LENGTH, "dropout": 0.0}, _RATES
    ),
)

# Equal tokens by other texts: fewer and longer ones, or such as go on; at the rate of v4.
_OTHERWISE = replace(V4, kind="long", like="v4", rates=())
_LONG = (
    replace(_OTHERWISE, name="v4-256", title="v4, 3 texts of 256", rows=3, length=256),
    replace(_OTHERWISE, name="v4-768", title="v4, 1 text of 768", rows=1, length=768),
    replace(_OTHERWISE, name="v4-1024", title="v4, 1 text of 1,024", rows=1, length=1_024, steps=1_500),
    replace(_OTHERWISE, name="v4-carried", title="v4, 12 texts of 64, state carried", carried=True),
    replace(
        _OTHERWISE, name="v4-256-carried", title="v4, 3 texts of 256, state carried", rows=3, length=256, carried=True
    ),
)

_SHORT = tuple(
    replace(V4, name=f"v4-{steps}-steps", title=f"v4, {steps} steps", kind="short", like="v4", rates=(), steps=steps)
    for steps in (400, 350, 450, 300, 500)
)

_PLAYS_GPT = Contestant(
    "plays-gpt", "GPT", "gpt", {"hidden": 256, "layers": 4, "heads": 4, "positions": 256}, (3e-3,),
    kind="plays", length=256,
)  # fmt: skip
_PLAYS_V4 = Contestant(
    "plays-v4", "v4", "v4", {"hidden": 256, "layers": 4, "oscillators": 128}, (3.5e-3,), kind="plays", length=256
)


def _dropping(one: Contestant, share: float) -> Contestant:
    shape = {**one.shape, "dropout": share}
    return replace(one, name=f"{one.name}-dropout", title=f"{one.title}, dropout {share:g}", shape=shape)


PLAYS = (_PLAYS_GPT, _PLAYS_V4, _dropping(_PLAYS_GPT, 0.1), _dropping(_PLAYS_V4, 0.2))
"""On the embedded plays, at the rates that were best at half the width, halved; steps follow from the CPU seconds. An
hour is six times through the text: without dropout v4 learns it by heart."""


def contestants(speeds: Mapping[str, float], steps: int = STEPS) -> tuple[Contestant, ...]:
    """Everyone, those first whose results are wanted first.

    Args:
        speeds: training tokens per CPU second against the GPT's, by name, as far as measured.
        steps: of a whole run; another number than 2,000 shortens all in proportion, to try the benchmark out.
    """
    told = (*_MAIN[:2], *_SHORT[:1], *_MAIN[2:], *_LONG, *_SHORT[1:], *_equal_seconds(speeds))
    return tuple(replace(one, steps=max(1, one.steps * steps // STEPS)) for one in told)


def _equal_seconds(speeds: Mapping[str, float]) -> Sequence[Contestant]:
    """The slower models again, for as many steps as the GPT's CPU seconds allow them."""
    return [
        replace(
            one, name=f"{one.name}-seconds", title=f"{one.title}, the GPT's CPU seconds", kind="seconds",
            like=one.name, rates=(), steps=max(1, round(STEPS * speeds[one.name] / 10) * 10),
        )
        for one in _MAIN[1:]
        if one.model != "v4" or one is V4  # its ablations cost what it costs
        if one.name in speeds and speeds[one.name] < FAST_ENOUGH
    ]  # fmt: skip


def tuning(contestant: Contestant) -> Contestant:
    """A contestant as it is trained to find its rate."""
    return replace(contestant, name=f"{contestant.name}-tuning", steps=max(1, contestant.steps // TUNING_PART))


def named(name: str, speed: float, steps: int) -> Contestant:
    """A contestant by the name in a job's file.

    Args:
        name: of a contestant, or of its tuning.
        speed: of the contestant that it is like, against the GPT's.
        steps: of a whole run.
    """
    plain = name.removesuffix("-tuning")
    found = next(one for one in contestants({plain.removesuffix("-seconds"): speed}, steps) if one.name == plain)
    return found if plain == name else tuning(found)


def made(contestant: Contestant, vocabulary: int, seed: int) -> Any:
    """The model with its initial values, which follow from the contestant and the seed alone."""
    import torch

    from benchmarks import gpt
    from kssm.config import model_config
    from kssm.models import build

    if contestant.model != "gpt":
        return build(model_config(contestant.model, "tiny", vocabulary, **contestant.shape), seed)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return gpt.GPT(gpt.Shape(vocabulary, **contestant.shape))
