"""`--host NAME`: the verb is run on another host, word by word as typed; only `status` is drawn here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence

from solorun import remote
from solorun.cli.places import current_settings
from solorun.errors import BadUsage
from solorun.wording import printable

FLAG = "--host"
_DRAWN_HERE = "status"
_SILENT = frozenset({"check", "logs", "stop", "history"})
"""Verbs that read nothing: a caller's `while read` loop keeps its list."""
_WITH_ADVICE = frozenset({1, 3, 4, 5, 7})


def take(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The host named by `--host NAME` or `--host=NAME`, and the words without it.

    Raises:
        BadUsage: no name follows, or two hosts are named.
    """
    names: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == FLAG:
            names.append(next(left, ""))
        elif word.startswith(f"{FLAG}="):
            names.append(word[len(FLAG) + 1 :])
        else:
            rest.append(word)
    if len(names) > 1:
        raise BadUsage("--host is given twice", "name one host, or ask all: solorun status --all-hosts")
    if names and not names[0]:
        raise BadUsage("--host needs a name", "solorun hosts   lists them")
    return (names[0] if names else None), rest


def is_forwarded(words: Sequence[str]) -> bool:
    """Whether these words are for the far side; help and the table of `status` are ours.

    Raises:
        BadUsage: the verb is about hosts itself.
    """
    verb = _verb(words)
    if verb == "hosts":
        raise BadUsage("`solorun hosts` asks every host", "leave --host out")
    return bool(verb) and verb != _DRAWN_HERE and not {"-h", "--help"} & set(words)


def wants_terminal(words: Sequence[str]) -> bool:
    """Whether a person talks with this verb: only then Ctrl-C and a lost connection are a terminal's, over there."""
    verb = _verb(words)
    if verb == "start":
        return not any(_means(word, "--background") or _means(word, "--tmux") for word in words)
    if verb == "logs":
        return any(re.match(r"-[a-z]*f", word) or _means(word, "--follow") for word in words)
    return verb in ("attach", "recover")


def run(name: str, words: Sequence[str], command: Sequence[str] | None) -> int:
    """Run a verb on a host; its exit status there.

    Args:
        name: of the host.
        words: verb, flags and arguments.
        command: what followed `--`; None without one.
    """
    settings = current_settings()
    host = remote.find_host(name, settings)
    foreground = wants_terminal(words)
    terminal = foreground and os.isatty(0) and os.isatty(1)
    typed = [*words] if command is None else [*words, "--", *command]
    reads = terminal or _verb(words) not in _SILENT
    ended = remote.forward(host, typed, remote.client(os.environ, settings), terminal=terminal, reads=reads)
    shown = printable(name)
    if ended.signal == signal.SIGINT and _verb(words) == "start":
        _note(f"left host {shown}; a run in the foreground there is asked to stop: solorun status --host {shown}")
    elif ended.note:
        _note(ended.note)
    elif _gave_advice(_verb(words), ended.code, foreground=foreground):
        _note(f"this was host {shown}: what is advised above needs --host {shown}")
    return ended.code


def _gave_advice(verb: str, code: int, *, foreground: bool) -> bool:
    """Whether commands may have been shown that work over there only."""
    if verb == "start":
        return not foreground
    return code in _WITH_ADVICE or (verb, code) in (("attach", 0), ("recover", 2))


def beyond(words: Sequence[str], *ours: str) -> list[str]:
    """The words of a verb without the verb itself and without the flags that are answered here."""
    verb = _verb(words)
    rest = [word for word in words if not any(_means(word, flag) for flag in ours)]
    if verb in rest:
        rest.remove(verb)
    return rest


def _verb(words: Sequence[str]) -> str:
    return next((word for word in words if not word.startswith("-")), "")


def _means(word: str, flag: str) -> bool:
    """Whether a word is this flag, or a beginning of it, as the parser takes it."""
    return len(word) > 2 and flag.startswith(word)


def _note(line: str) -> None:
    print(f"solorun: {line}", file=sys.stderr)
