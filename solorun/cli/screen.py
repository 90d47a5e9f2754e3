"""What a verb prints: control characters are shown, never sent, whatever file, process or host they came from.

In a pipe too, since `solorun status | head` ends at a terminal. Only a log goes into a pipe as it is.
"""

from __future__ import annotations

import io
import sys

from solorun.wording import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


class Screen:
    """A stream that takes text and shows what a terminal would obey.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write it; only line feeds and tabs keep their meaning."""
        if not text.isprintable():
            lines = text.split("\n")
            text = "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def put_up() -> None:
    """Let standard output and error be such streams from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is shown as "?"
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = Screen(unscreened(sys.stdout)), Screen(unscreened(sys.stderr))


def unscreened(stream: TextIO) -> TextIO:
    """The stream itself, for a log that goes into a pipe, or was made fit for a terminal already."""
    return stream.stream if isinstance(stream, Screen) else stream
