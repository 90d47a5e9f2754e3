"""How things are said to a person: durations and command lines."""

from __future__ import annotations

import os


def ago(seconds: float) -> str:
    """A duration as a person says it: 12 s, 3 min, 5 h 20 min, 2 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def short(seconds: float) -> str:
    """A duration for a column of a table: 12s, 3m, 5h20m, 2d4h."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 7200:
        return f"{whole // 60}m"
    if whole < 172_800:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def printable(text: str) -> str:
    """A name with control characters shown, not sent to the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-"
"""What no shell takes for anything else, as `shlex.quote` has it."""


def shell_word(path: str | os.PathLike[str]) -> str:
    """A path as one word of a shell, which means that path when it is typed or pasted: never a flag, never cut in two.

    Control characters, and bytes that are no text, are spelled as bash and zsh read them: $'a\\nb'.
    """
    text = os.fspath(path)
    text = f"./{text}" if text.startswith("-") else text
    if not text.strip(_PLAIN):  # nothing else is in it
        return text or "''"
    if text.isprintable():
        import shlex

        return shlex.quote(text)
    return "$'" + "".join(_spelled(c) for c in text) + "'"


def _spelled(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def command_line(argv: tuple[str, ...]) -> str:
    """A command on one line, control characters shown, cut to what a terminal can take."""
    import shlex

    text = printable(shlex.join(argv))
    return text if len(text) <= 160 else text[:157] + "..."


def size(count: int) -> str:
    """A number of bytes as a person says it: 512 MiB, 1.5 GiB."""
    amount, units = float(max(0, count)), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if amount < 1024 or unit == units[-1]:
            break
        amount /= 1024
    return f"{amount:.1f} {unit}" if amount < 10 and unit not in ("B", "KiB") else f"{amount:.0f} {unit}"


def not_yours(proof: str, user: str) -> str:
    """That the lock of a run that is over is another user's to remove.

    Args:
        proof: that it is over.
        user: who may.
    """
    return f"{proof}; you may not remove what it left, {user} may"


def ask_to_clear(user: str) -> str:
    """What to do about that."""
    return f"ask {user} to clear it (solorun check), or choose another results directory"
