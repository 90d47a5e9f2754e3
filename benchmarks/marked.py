"""Pages whose figures a benchmark writes between two marks, while the prose around them is a person's."""

from __future__ import annotations

from pathlib import Path


def renewed(document: str, text: str, marks: tuple[str, str], path: Path) -> str:
    """The page with what is between its marks replaced.

    Args:
        document: the page as it is.
        text: what shall stand between the marks.
        marks: where that begins and ends, each a line.
        path: of the page, for the error.

    Raises:
        ValueError: a mark is missing.
    """
    begin, end = marks
    before, _, rest = document.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{path} lacks its marks {begin.strip()} and {end.strip()}")
    return before + begin + text + end + after
