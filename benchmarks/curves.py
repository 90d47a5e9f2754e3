"""Curves of a cost against a size: slopes, the straight line, where it is left, and a drawing. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A departure below this is noise on a shared machine; a line takes three points.
LEAVES = 0.15
_FIRST = 3
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 170, 120, 56, 34, 66


@dataclass(frozen=True, slots=True)
class Curve:
    """A cost at several sizes.

    Args:
        axis: what was varied: S, V, N, H or D.
        cost: what it costs, with its unit.
        sizes: ascending, at least three.
        costs: one per size, above 0.
    """

    axis: str
    cost: str
    sizes: tuple[float, ...]
    costs: tuple[float, ...]

    def line(self, count: int | None = None) -> tuple[float, float]:
        """Cost at size 0 and cost per unit of the straight line through the first `count` points, or through all."""
        first = self._points()[:count]
        # Weighted by 1 / cost^2: a point counts by its relative error, as it is read on logarithmic paper.
        w = [1 / cost**2 for _, cost in first]
        x = sum(a * size for a, (size, _) in zip(w, first, strict=True)) / sum(w)
        y = sum(a * cost for a, (_, cost) in zip(w, first, strict=True)) / sum(w)
        across = sum(a * (size - x) * (cost - y) for a, (size, cost) in zip(w, first, strict=True))
        # What is larger does not cost less: a fall is noise, and must not be drawn out to where it would cost nothing.
        slope = max(0.0, across / sum(a * (size - x) ** 2 for a, (size, _) in zip(w, first, strict=True)))
        return y - slope * x, slope

    def leaves(self) -> tuple[int, float] | None:
        """Which point is the first off the line through all smaller ones, and by what share; None where none is."""
        for index, (size, cost) in list(enumerate(self._points()))[_FIRST:]:
            start, slope = self.line(index)
            off = cost / max(start + slope * size, 1e-9) - 1
            if abs(off) > LEAVES:
                return index, off
        return None

    def exponents(self) -> tuple[float, float]:
        """Slope on logarithmic paper: over all points by least squares, and between the last two."""
        logs = [(math.log(size), math.log(cost)) for size, cost in self._points()]
        x, y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
        overall = sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs)
        (a, b), (c, d) = logs[-2:]
        return overall, (d - b) / (c - a)

    def told(self) -> str:
        """What the curve does, in a line."""
        overall, last = self.exponents()
        left = self.leaves()
        where = "stays on it" if left is None else f"leaves it at {self.sizes[left[0]]:,g} ({left[1]:+.0%})"
        return f"{self.axis}, {self.cost}: exponent {overall:.2f}, at the end {last:.2f}; straight line: {where}"

    def _points(self) -> list[tuple[float, float]]:
        return list(zip(self.sizes, self.costs, strict=True))


def drawing(rows: Sequence[Sequence[Curve]]) -> str:
    """An SVG of logarithmic panels, as the curves stand in their rows; the line, up to where it is left, is dashed."""
    wide = max(map(len, rows)) * (_WIDTH + _GAP) + 12
    high = len(rows) * (_HEIGHT + _GAP) + 12
    panels = [
        _panel(curve, _LEFT + column * (_WIDTH + _GAP), _TOP + row * (_HEIGHT + _GAP))
        for row, curves in enumerate(rows)
        for column, curve in enumerate(curves)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" '
        'font-size="11">\n'
        f'<rect width="{wide}" height="{high}" fill="white"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(curve: Curve, left: float, top: float) -> str:
    left_at = curve.leaves()
    start, slope = curve.line(left_at and left_at[0])
    low, high = min(curve.costs) / 1.3, max(curve.costs) * 1.3
    first, last = math.log(curve.sizes[0]), math.log(curve.sizes[-1])

    def place(size: float, cost: float) -> str:
        x = left + (math.log(size) - first) / (last - first) * _WIDTH
        y = top + (math.log(high) - math.log(cost)) / (math.log(high) - math.log(low)) * _HEIGHT
        return f"{x:.1f},{min(max(y, top), top + _HEIGHT):.1f}"

    fine = [math.exp(first + (last - first) * part / 24) for part in range(25)]
    line = " ".join(place(size, max(start + slope * size, low)) for size in fine)
    points = [place(size, cost) for size, cost in zip(curve.sizes, curve.costs, strict=True)]
    dots = "".join('<circle cx="{}" cy="{}" r="3" fill="#0b5cad"/>'.format(*point.split(",")) for point in points)
    return (
        f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>'
        f'<text x="{left}" y="{top - 8}">{curve.cost} against {curve.axis}</text>'
        f'<polyline points="{line}" fill="none" stroke="#c60" stroke-dasharray="4 3"/>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#0b5cad" stroke-width="1.5"/>{dots}'
        f'<text x="{left}" y="{top + _HEIGHT + 15}" text-anchor="middle">{curve.sizes[0]:,g}</text>'
        f'<text x="{left + _WIDTH}" y="{top + _HEIGHT + 15}" text-anchor="middle">{curve.sizes[-1]:,g}</text>'
        f'<text x="{left - 5}" y="{top + 9}" text-anchor="end">{high:,.0f}</text>'
        f'<text x="{left - 5}" y="{top + _HEIGHT}" text-anchor="end">{low:,.0f}</text>'
    )
