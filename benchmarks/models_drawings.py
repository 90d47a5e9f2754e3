"""The drawings of docs/models.md: loss against tokens and CPU seconds, and what v4's oscillators do meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.plots import COLOURS, Line, Panel, drawing
from benchmarks.summary import Standing, Summary

_AFTER = 100
"""Steps before which no loss is drawn: it falls off the paper."""


def drawings(summary: Summary) -> dict[str, str]:
    """File name to SVG; those alone that have something to show."""
    main = [one for one in summary.of_kind("main") if one.runs]
    found = {}
    if main:
        found["models-loss.svg"] = _losses(summary, main)
    v4 = summary.named("v4")
    if v4 is not None and v4.runs and v4.runs[0].points[-1]["coupling"]:
        found["models-oscillators.svg"] = _oscillators(v4)
    return found


def _losses(summary: Summary, main: list[Standing]) -> str:
    five = next((one for one in summary.ngrams if one.order == 5 and one.smoothing == "absolute"), None)
    best = min(summary.ngrams, key=lambda one: one.loss, default=None)
    levels = [("5-grams", five.loss)] if five else []
    levels += [(f"{best.order}-grams, Kneser-Ney", best.loss)] if best and best is not five else []
    lines = {
        way: tuple(
            _line(one, COLOURS[n % len(COLOURS)], way, lambda point: point["validation"], after=_AFTER)
            for n, one in enumerate(main)
        )
        for way in ("tokens", "cpu_s")
    }
    ends = [value for line in lines["tokens"] for seed in line.seeds for value in seed[-1:]]
    low = min([*ends, *(y for _, y in levels)]) - 0.05
    high = max(2.6, max(ends) + 0.1)
    return drawing(
        [
            Panel(
                "Validation loss, nats per character", "tokens trained on", lines["tokens"], low, high, tuple(levels)
            ),
            Panel("The same against CPU seconds", "CPU seconds of training", lines["cpu_s"], low, high, tuple(levels)),
        ]
    )


def _oscillators(v4: Standing) -> str:
    layers = range(len(v4.runs[0].points[-1]["coupling"]))

    def panel(title: str, name: str) -> Panel:
        means = _line(v4, COLOURS[0], "step", lambda point: sum(point[name]) / len(point[name]), title="all layers")
        each = (
            _line(v4, COLOURS[1 + n], "step", lambda point, n=n: point[name][n], title=f"layer {n + 1}", dashed=True)
            for n in layers
        )
        lines = (means, *each)
        top = max(value for line in lines for seed in line.seeds for value in seed)
        return Panel(title, "steps", lines, 0.0, min(1.0, 1.15 * top))

    return drawing([panel("Order parameter R", "order_parameter"), panel("Coupling k", "coupling")])


def _line(
    one: Standing,
    colour: str,
    across: str,
    value: Callable[[Mapping[str, Any]], float],
    *,
    after: int = 0,
    title: str = "",
    dashed: bool = False,
) -> Line:
    """A curve at the steps that all seeds have looked at; CPU seconds are the seeds' mean."""
    shared = set.intersection(*({point["step"] for point in run.points} for run in one.runs))
    last = max(shared)
    told = [[p for p in run.points if p["step"] in shared and (p["step"] >= after or last < after)] for run in one.runs]
    x = tuple(sum(point[across] for point in at) / len(at) for at in zip(*told, strict=True))
    seeds = tuple(tuple(value(point) for point in points) for points in told)
    return Line(title or one.title, x, seeds, colour, dashed)
