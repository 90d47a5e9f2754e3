"""docs/models.md from the summary of the comparison: tables, and what each part is worth. Pure but for `write`.

Only what stands between the two marks of the page is written anew: the prose around it is a person's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import marked
from benchmarks.contestants import FAST_ENOUGH, LENGTH, LONG, SEEDS, STEPS, TUNING_PART
from benchmarks.models_drawings import drawings
from benchmarks.summary import Standing, Summary

DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENT = DOCS / "models.md"
BEGIN, END = "<!-- compared: begin -->\n", "<!-- compared: end -->\n"

# What is asked, with the model that has the part and the one that lacks it.
_PARTS = (
    ("coupling", "v4", "v4-uncoupled"),
    ("coupling, where nothing rotates", "v4-unrotated", "v4-neither"),
    ("rotation", "v4", "v4-unrotated"),
    ("rotation, where nothing is coupled", "v4-uncoupled", "v4-neither"),
    ("both together", "v4", "v4-neither"),
    ("gated recurrence and convolution in the place of attention", "v4-neither", "gpt"),
    ("v4 whole, against the GPT", "v4", "gpt"),
    ("a state at all: v4 against v3", "v4", "v3"),
    ("v3 against v2", "v3", "v2"),
)


def write(summary: Summary) -> None:
    """Put the tables into the page, and draw the curves beside it; raises ValueError where the page lacks its marks."""
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(), compared(summary)))
    for name, picture in drawings(summary).items():
        (DOCS / name).write_text(picture)


def renewed(document: str, tables: str) -> str:
    """The page with what is between the marks replaced; raises ValueError where a mark is missing."""
    return marked.renewed(document, tables, (BEGIN, END), DOCUMENT)


def compared(summary: Summary) -> str:
    """Everything that was found, as Markdown."""
    text = summary.text
    intro = (
        f"{summary.date}, on {summary.machine}. Text {text['digest']}: {text['train']:,} characters to learn from, "
        f"{text['validation']:,} held out, alphabet of {text['alphabet']}.\n"
    )
    parts = [
        intro, table(summary), _pictures(summary), worth(summary), _soonest(summary), _seconds(summary),
        _long(summary), _counting(summary), _grids(summary), _plays(summary),
    ]  # fmt: skip
    return "\n" + "\n".join(part for part in parts if part)


def table(summary: Summary) -> str:
    """The models at equal parameters and equal tokens."""
    rows = [
        (
            one.title, f"{one.parameters:,}", _rate(one.rate), _mean(one.losses()), _seeds(one.losses()),
            _mean(one.losses("long")), _mean(one.losses("carried")), _speed(summary, one.name), _cpu(one),
        )
        for one in summary.of_kind("main")
        if one.runs
    ]  # fmt: skip
    heads = (
        "model", "parameters", "rate", f"loss, blocks of {LENGTH}", "seeds", f"blocks of {LONG:,}", "state carried",
        "tokens per CPU s, GPT = 1", "CPU s",
    )  # fmt: skip
    return _markdown("### Equal parameters, equal tokens", heads, rows)


def worth(summary: Summary) -> str:
    """What each part is worth: differences of the same seed's losses, with and without it."""
    rows = []
    for what, having, lacking in _PARTS:
        for way, where in (("validation", f"{LENGTH}"), ("long", f"{LONG:,}")):
            gains = _gains(summary.named(having), summary.named(lacking), way)
            if gains:
                rows.append((what, where, f"{statistics.fmean(gains):+.3f}", _seeds(gains, "+.3f"), verdict(gains)))
    heads = ("part", "blocks of", "gain, nats per character", "seeds", "verdict")
    return _markdown("### What each part is worth", heads, rows)


def verdict(gains: Sequence[float]) -> str:
    """A gain in words: it counts where all seeds agree and it is larger than the seeds' own spread."""
    mean, spread = statistics.fmean(gains), max(gains) - min(gains)
    if not (min(gains) > 0 or max(gains) < 0) or abs(mean) <= spread / 2:
        return "within the seeds' spread: nothing shown"
    return "helps, in every seed" if mean > 0 else "**costs**, in every seed"


def _gains(having: Standing | None, lacking: Standing | None, way: str) -> list[float]:
    if having is None or lacking is None:
        return []
    pairs = {run.seed: getattr(run, way) for run in lacking.runs}
    found = [(pairs.get(run.seed), getattr(run, way)) for run in having.runs]
    return [without - with_it for without, with_it in found if without is not None and with_it is not None]


def _soonest(summary: Summary) -> str:
    """How soon v4 is where the GPT ends: schedules of their own, each with its cosine to the end."""
    gpt, v4 = summary.named("gpt"), summary.named("v4")
    short = sorted((one for one in summary.of_kind("short") if one.runs), key=lambda one: one.steps)
    if gpt is None or not short or gpt.mean() is None:
        return ""
    goal, gpt_s, speed = gpt.mean(), gpt.cpu_s(), summary.speeds.get("v4", {}).get("ratio")
    rows = []
    for one in [gpt, *short, *([v4] if v4 and v4.runs else [])]:
        seconds = one.cpu_s()
        by_speed = f"{one.steps / gpt.steps / speed:.0%}" if speed and one is not gpt else "-"
        share = f"{seconds / gpt_s:.0%}" if seconds and gpt_s else "-"
        rows.append(
            (one.title, f"{one.steps:,}", _mean(one.losses()), _seeds(one.losses()), _cpu(one), share, by_speed)
        )
    heads = ("run", "steps", "loss", "seeds", "CPU s", "of the GPT's", "by speeds in turn")
    there = next((one for one in short if (found := one.mean()) is not None and found <= goal), None)
    told = f"Nobody of these is at the GPT's {goal:.4f} sooner than the GPT.\n"
    if there is not None:
        seconds, share = there.cpu_s(), there.cpu_s() / gpt_s
        told = f"The shortest at or below {goal:.4f}: **{there.steps:,} steps, {seconds:.0f} CPU s, {share:.0%}**.\n"
    return _markdown("### CPU seconds to the GPT's final loss", heads, rows) + "\n" + told


def _seconds(summary: Summary) -> str:
    """The models within the GPT's CPU seconds: slower ones with fewer steps, others as they are."""
    own = {one.name.removesuffix("-seconds"): one for one in summary.of_kind("seconds") if one.runs}
    rows = []
    for main in summary.of_kind("main"):
        one = own.get(main.name)
        as_fast = main.name == "gpt" or (
            main.name in summary.speeds and summary.speeds[main.name]["ratio"] >= FAST_ENOUGH
        )
        one = main if one is None and as_fast and main.runs else one
        if one is not None:
            long = _mean(one.losses("long"))
            rows.append((main.title, f"{one.steps:,}", _mean(one.losses()), _seeds(one.losses()), long, _cpu(one)))
    heads = ("model", "steps", f"loss, blocks of {LENGTH}", "seeds", f"blocks of {LONG:,}", "CPU s")
    return _markdown("### Equal parameters, no more CPU seconds than the GPT", heads, rows) if len(rows) > 1 else ""


def _long(summary: Summary) -> str:
    rows = [
        (
            one.title, _rate(one.rate), _mean(one.losses()), _mean(one.losses("long")), _seeds(one.losses("long")),
            _mean(one.losses("carried")), _speed(summary, one.name), _cpu(one),
        )
        for one in [summary.named("v4"), *summary.of_kind("long")]
        if one is not None and one.runs
    ]  # fmt: skip
    heads = (
        "trained on, in a step", "rate", f"loss, blocks of {LENGTH}", f"blocks of {LONG:,}", "seeds", "state carried",
        "tokens per CPU s, GPT = 1", "CPU s",
    )  # fmt: skip
    return _markdown("### Longer texts and carried state, equal tokens", heads, rows) if len(rows) > 1 else ""


def _counting(summary: Summary) -> str:
    rows = [(f"{one.order}", one.smoothing, f"{one.loss:.3f}", f"{one.counts:,}") for one in summary.ngrams]
    return _markdown("### Tables of n-grams", ("n", "smoothing", "loss", "numbers kept"), rows)


def _grids(summary: Summary) -> str:
    """Every rate tried, with the loss at the end of a shorter run of the tuning seed."""
    tuned = [one for one in summary.standings if one.grid]
    rates = sorted({rate for one in tuned for rate, _ in one.grid})
    rows = []
    for one in tuned:
        told = {rate: "broke" if loss is None else f"{loss:.3f}" for rate, loss in one.grid}
        rows.append((one.title, *(f"**{told[rate]}**" if rate == one.rate else told.get(rate, "") for rate in rates)))
    return _markdown(
        f"### Learning rates, seed 0, {STEPS // TUNING_PART:,} steps", ("model", *(f"{rate:g}" for rate in rates)), rows
    )


def _plays(summary: Summary) -> str:
    most = max((one["cpu_seconds"] for one in summary.plays), default=0)
    rows = [
        (
            one["title"], f"{one['parameters']:,}", _rate(one["rate"]), f"{one['cpu_s']:,.0f}", f"{one['tokens']:,}",
            f"{one['bits_per_byte']:.4f}", "-" if one["long"] is None else f"{one['long']:.4f}",
            *_lowest(one["points"]),
        )
        for one in summary.plays
        if one["cpu_seconds"] == most and one["bits_per_byte"] is not None
    ]  # fmt: skip
    heads = (
        "model", "parameters", "rate", "CPU s", "tokens", "bits per byte, blocks of 256", f"blocks of {LONG:,}",
        "lowest on the way", "after CPU s",
    )  # fmt: skip
    return _markdown(f"### The embedded plays, {most:,.0f} CPU seconds each, one seed", heads, rows)


def _lowest(points: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Of what was read along the training, and when."""
    low = min(points, key=lambda point: point["bits_per_byte"], default=None)
    return ("-", "-") if low is None else (f"{low['bits_per_byte']:.4f}", f"{low['cpu_s']:,.0f}")


def _pictures(summary: Summary) -> str:
    named = {
        "models-loss.svg": "Validation loss against tokens and CPU seconds: mean and range of the seeds.",
        "models-oscillators.svg": "R and k of v4 on the held-out text over training: all layers, and each.",
    }
    drawn = drawings(summary)
    return "\n".join(f"![{named[name]}]({name})\n\n{named[name]}\n" for name in drawn)


def _markdown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    missing = "" if len(values) == len(SEEDS) else f" ({len(values)} of {len(SEEDS)} seeds)"
    return f"{statistics.fmean(values):.3f}{missing}"


def _seeds(values: Sequence[float], form: str = ".3f") -> str:
    return ", ".join(format(value, form) for value in values) or "-"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:g}"


def _speed(summary: Summary, name: str) -> str:
    if name == "gpt":
        return "1"
    told = summary.speeds.get(name)
    return f"{told['ratio']:.2f}" if told else "-"


def _cpu(one: Standing) -> str:
    return f"{statistics.fmean(run.cpu_s for run in one.runs):,.0f}" if one.runs else "-"
