"""Curves of trainings as SVG: the mean over the seeds is a line, all seeds lie in a band. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind eyes as well (Okabe and Ito)."""

_LEFT, _TOP, _BOTTOM, _GAP, _LINE = 52, 30, 44, 34, 18


@dataclass(frozen=True, slots=True)
class Line:
    """A curve.

    Args:
        title: in the legend.
        x: ascending.
        seeds: of each seed the values at x.
        colour: of line and band.
        dashed: drawn with gaps.
    """

    title: str
    x: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]
    colour: str
    dashed: bool = False

    def mean(self) -> list[float]:
        """Over the seeds, at each x."""
        return [sum(values) / len(values) for values in zip(*self.seeds, strict=True)]


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot.

    Args:
        title: above it.
        across: what x is.
        lines: in it.
        low: lowest y shown.
        high: highest y shown; what lies beyond is cut off.
        levels: (title, y) of lines across.
    """

    title: str
    across: str
    lines: tuple[Line, ...]
    low: float
    high: float
    levels: tuple[tuple[str, float], ...] = ()


def drawing(panels: Sequence[Panel], width: int = 400, height: int = 260) -> str:
    """An SVG of panels side by side, with one legend under them all."""
    entries = list(dict.fromkeys((line.title, line.colour, line.dashed) for panel in panels for line in panel.lines))
    wide = len(panels) * (_LEFT + width) + (len(panels) - 1) * _GAP + 16
    columns = max(1, wide // 210)
    legend_top = _TOP + height + _BOTTOM
    high = legend_top + math.ceil(len(entries) / columns) * _LINE + 8
    parts = [_panel(panel, _LEFT + n * (_LEFT + width + _GAP), width, height, n) for n, panel in enumerate(panels)]
    for n, (title, colour, dashed) in enumerate(entries):
        x, y = _LEFT + n % columns * 210, legend_top + n // columns * _LINE
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{colour}" stroke-width="2"{_dashes(dashed)}/>'
            f'<text x="{x + 28}" y="{y + 4}">{escape(title)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="{wide}" height="{high}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * of for of in (1, 2, 5, 10) if power * of >= 0.8 * rough)
    first = math.ceil(low / apart - 1e-9)
    return [round(n * apart, 10) for n in range(first, math.floor(high / apart + 1e-9) + 1)]


def _panel(panel: Panel, left: float, width: int, height: int, number: int) -> str:
    end = max((line.x[-1] for line in panel.lines), default=1)

    def at(x: float) -> float:
        return left + x / end * width

    def up(y: float) -> float:
        return _TOP + (panel.high - y) / (panel.high - panel.low) * height

    parts = [
        f'<clipPath id="plot{number}"><rect x="{left}" y="{_TOP}" width="{width}" height="{height}"/></clipPath>',
        f'<text x="{left}" y="{_TOP - 10}" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{left + width / 2}" y="{_TOP + height + 30}" text-anchor="middle">{escape(panel.across)}</text>',
    ]
    parts += (
        f'<line x1="{left}" y1="{up(y):.1f}" x2="{left + width}" y2="{up(y):.1f}" stroke="#e4e4e4"/>'
        f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ticks(panel.low, panel.high)
    )
    parts += (
        f'<text x="{at(x):.1f}" y="{_TOP + height + 15}" text-anchor="middle">{_short(x)}</text>' for x in ticks(0, end)
    )
    for title, y in panel.levels:
        parts.append(
            f'<line x1="{left}" y1="{up(y):.1f}" x2="{left + width}" y2="{up(y):.1f}" stroke="#888" '
            f'stroke-dasharray="2 3"/><text x="{left + width - 4}" y="{up(y) - 4:.1f}" text-anchor="end" '
            f'fill="#666">{escape(title)}</text>'
        )
    for line in panel.lines:
        lowest, highest = ([pick(values) for values in zip(*line.seeds, strict=True)] for pick in (min, max))
        around = [*zip(line.x, highest, strict=True), *reversed(list(zip(line.x, lowest, strict=True)))]
        band, middle = (
            " ".join(f"{at(x):.1f},{up(y):.1f}" for x, y in points)
            for points in (around, zip(line.x, line.mean(), strict=True))
        )
        parts.append(
            f'<g clip-path="url(#plot{number})"><polygon points="{band}" fill="{line.colour}" opacity="0.15"/>'
            f'<polyline points="{middle}" fill="none" stroke="{line.colour}" stroke-width="1.6"'
            f"{_dashes(line.dashed)}/></g>"
        )
    parts.append(f'<rect x="{left}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
    return "\n".join(parts)


def _dashes(dashed: bool) -> str:
    return ' stroke-dasharray="5 3"' if dashed else ""


def _short(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"
