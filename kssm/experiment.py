"""What is R a cause of? The loss with a coupling or an order parameter set, beside its controls, on the same batches.

Each setting is compared with the untouched model batch by batch, so that what the batches have in common drops out of
the difference. The method and its limits: `kssm.intervention`, docs/intervention.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kssm.asked import Place, Setting
from kssm.config import ModelConfig, TrainConfig
from kssm.device import Compute
from kssm.errors import BadUsage
from kssm.evaluate import Measured, mean_of, measured
from kssm.intervention import Intervention, intervening
from kssm.language_model import LanguageModel

TOLERANCE = 1e-3
"""Nats by which the machinery alone may change the loss; no smaller difference is called one."""

OWN, OWN_SHUFFLED, OWN_RANDOM, OWN_COUPLING = "R = own", "R = own, shuffled", "R = own, random", "k = own"


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table.

    Args:
        name: of it.
        what: is set.
        setting: that was asked for; None for a control.
    """

    name: str
    what: Intervention
    setting: Setting | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm did to the loss.

    Args:
        name: of the arm.
        order_parameter: R as it was then, mean over tokens and layers.
        coupling: k as it was then; v4 alone has it.
        ce: cross-entropy, nats per token.
        difference: of it from the untouched model's, mean over the tokens.
        standard_error: of the difference, over the batches; None where there is only one.
        setting: that was asked for; None for a control.
    """

    name: str
    order_parameter: float
    coupling: float | None
    ce: float
    difference: float
    standard_error: float | None
    setting: Setting | None = None

    @property
    def tells(self) -> bool:
        """Whether the difference is more than the batches' scatter and the machinery's rounding."""
        return abs(self.difference) > max(2 * (self.standard_error or 0.0), TOLERANCE)

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return f"{self.difference:+.4f}{error}"


def arms(settings: Sequence[Setting], at: Place) -> list[Arm]:
    """The settings that were asked for, each kind after its controls."""
    found: list[Arm] = []
    if any(setting.what == "R" for setting in settings):
        found += [
            Arm(OWN, Intervention(phases=True, at=at)),
            Arm(OWN_SHUFFLED, Intervention(phases=True, arrangement="shuffled", at=at)),
            Arm(OWN_RANDOM, Intervention(phases=True, arrangement="random", at=at)),
        ]
    for setting in settings:
        if setting.what == "R":
            kept = Intervention(order_parameter=setting.value, phases=True, at=at)
            found.append(Arm(str(setting), kept, setting))
            random = Intervention(order_parameter=setting.value, phases=True, arrangement="random", at=at)
            found.append(Arm(f"{setting}, random", random))
    couplings = [Arm(str(each), Intervention(coupling=each.value), each) for each in settings if each.what == "k"]
    return [*found, *([Arm(OWN_COUPLING, Intervention()), *couplings] if couplings else [])]


def place_of(config: ModelConfig, settings: Sequence[Setting], at: Place | None) -> Place:
    """Where the phases of a model are set.

    Raises:
        BadUsage: the model cannot be set so.
    """
    if at == "state" and config.name != "v4":
        raise BadUsage(
            f"--at state: {config.name} carries no state from one token to the next", "leave it out, or use v4"
        )
    couplings = [setting for setting in settings if setting.what == "k"]
    if couplings and not config.coupled:
        raise BadUsage(f"--intervene {couplings[0]}: this model was trained without coupling", "set R instead")
    if config.name == "v4" and any(setting.value > 1 for setting in couplings):
        raise BadUsage("--intervene k: v4's coupling lies in 0 to 1", "write, for example, --intervene k=0.5")
    together = config.group if config.name == "v4" else config.oscillators
    if together < 2 and len(couplings) < len(settings):
        raise BadUsage("--intervene R: an oscillator alone has R = 1 always", "set k instead")
    return at or ("state" if config.name == "v4" else "readout")


def run(
    model: LanguageModel,
    batches: Callable[[], Iterable[NDArray[np.integer]]],
    compute: Compute,
    config: TrainConfig,
    chosen: Sequence[Arm],
    *,
    carry_state: bool = False,
) -> tuple[list[Measured], list[Outcome]]:
    """The untouched model's batches, and what each arm did to them; the model is as before.

    Args:
        model: on the device of `compute`.
        batches: the same ones each time that they are asked for, [B, S + 1] each.
        compute: device and precision.
        config: the regulariser's weights.
        chosen: the arms.
        carry_state: as in `kssm.evaluate`.

    Raises:
        KssmError: there was no batch.
    """

    def parts(what: Intervention | None) -> list[Measured]:
        with intervening(model, what, config.seed):
            return list(measured(model, batches(), compute, config, carry_state=carry_state))

    untouched = parts(None)
    return untouched, [_outcome(model, arm, parts(arm.what), untouched) for arm in chosen]


def _outcome(model: LanguageModel, arm: Arm, parts: Sequence[Measured], untouched: Sequence[Measured]) -> Outcome:
    found = mean_of(model, parts)
    by_batch = [_ce(one) - _ce(other) for one, other in zip(parts, untouched, strict=True)]
    tokens = [part.tokens for part in parts]
    mean = sum(d * n for d, n in zip(by_batch, tokens, strict=True)) / sum(tokens)
    error = statistics.stdev(by_batch) / math.sqrt(len(by_batch)) if len(by_batch) > 1 else None
    return Outcome(arm.name, found.order_parameter, found.coupling, found.ce, mean, error, arm.setting)


def _ce(part: Measured) -> float:
    return float(part.sums[1]) / part.tokens


def meaning(outcomes: Sequence[Outcome]) -> list[str]:
    """What the table says and what it does not, a sentence for R and one for k."""
    controls = {outcome.name: outcome for outcome in outcomes if outcome.setting is None}
    found: list[str] = []
    for what, say in (("R", _of_synchrony), ("k", _of_coupling)):
        asked = [outcome for outcome in outcomes if outcome.setting is not None and outcome.setting.what == what]
        if not asked:
            continue
        own = controls[OWN if what == "R" else OWN_COUPLING]
        if abs(own.difference) > TOLERANCE:
            found.append(f"{own.name} should change nothing and gives {own}: this table proves nothing about {what}")
        else:
            found.append(say(max(asked, key=lambda outcome: abs(outcome.difference)), controls))
    return found


def _of_synchrony(most: Outcome, controls: dict[str, Outcome]) -> str:
    anew = controls[OWN_RANDOM]
    if not most.tells:
        also = (
            f"; which phases have that R does matter: random ones with each token's own R give {anew}"
            if anew.tells
            else ", and neither do random phases with each token's own R"
        )
        return f"setting R changes the loss by nothing that can be told ({most.name}: {most}){also}"
    said = f"setting R changes the loss ({most.name}: {most})"
    if not anew.tells:
        return f"{said}, and random phases with each token's own R do not: what is read is R, or moves with it"
    than = "more than" if abs(anew.difference) > abs(most.difference) else "beside"
    return (
        f"{said}, but so do random phases with each token's own R ({anew}): {than} their synchrony it matters which "
        f"phases they are; and other harmonics move with R, so not all of the difference is R's"
    )


def _of_coupling(most: Outcome, _: dict[str, Outcome]) -> str:
    if not most.tells:
        return f"setting k changes the loss by nothing that can be told ({most.name}: {most})"
    return f"setting k changes the loss ({most.name}: {most}) of a model that was trained with its own k"


def table(untouched_R: float, untouched_k: float | None, untouched_ce: float, outcomes: Sequence[Outcome]) -> list[str]:
    """The outcomes under the untouched model, for people."""
    none = Outcome("untouched", untouched_R, untouched_k, untouched_ce, 0.0, None)
    width = max(len(outcome.name) for outcome in (none, *outcomes))
    head = f"  {'intervention':<{max(width, 12)}}  R after  {'k' if untouched_k is not None else ' ':>6}  {'CE':>8}"
    lines = [f"{head}  difference, nats"]
    for outcome in (none, *outcomes):
        k = "" if outcome.coupling is None else f"{outcome.coupling:.4f}"
        told = "" if outcome is none else str(outcome)
        row = f"  {outcome.name:<{max(width, 12)}}  {outcome.order_parameter:7.4f}  {k:>6}  {outcome.ce:8.4f}  {told}"
        lines.append(row.rstrip())
    return lines
