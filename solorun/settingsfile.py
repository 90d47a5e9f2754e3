"""Settings as a person made them: `solorun.toml`, overruled by the environment, overruled by flags.

The file is read strictly: an unknown key or a wrong value is told with the file and the key, never passed over. It can
run commands (a run's, a notice's, on a host), so one that another user may have written is not used.
"""

from __future__ import annotations

import os

from solorun.errors import BadUsage
from solorun.frozen import replace
from solorun.settings import HostEntry, NotifyEntry, RunEntry, Settings
from solorun.wording import printable, shell_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

FILE = "solorun.toml"
OCCASIONS = ("end", "crash", "hang", "memory", "disk")
_LONGEST_S = 1e9
"""Thirty years. Of longer waits some system calls make an error."""
_LARGEST = 1 << 20
_WAYS = ("command", "webhook", "apprise")


def load(
    cwd: str | os.PathLike[str], environment: Mapping[str, str], tell: Callable[[str], None] = lambda _line: None
) -> Settings:
    """The settings in force for a working directory.

    Args:
        cwd: `solorun.toml` is looked for here and in every directory above.
        environment: SOLORUN_ROOTS, paths separated as in PATH, overrules the file. SOLORUN_TRUST, likewise, names
            directories whose file is used whoever may write it.
        tell: told in a line each file that was passed over because another user may have written it.

    Raises:
        BadUsage: the file cannot be read, has an unknown key, or a value of the wrong kind.
    """
    settings: Settings | None = None
    for place in _upwards(os.fspath(cwd)):
        path = os.path.join(place, FILE)
        if os.path.isfile(path) and (settings := _read(path, environment, tell)) is not None:
            break
    if settings is None:
        settings = replace(Settings(), roots=tuple(os.path.join(cwd, root) for root in Settings().roots))
    if roots := environment.get("SOLORUN_ROOTS"):
        settings = replace(settings, roots=tuple(root for root in roots.split(os.pathsep) if root))
    return settings


def _upwards(directory: str) -> Iterator[str]:
    """A directory and every one above it."""
    yield directory
    while (above := os.path.dirname(directory)) != directory:
        directory = above
        yield directory


def _read(path: str, environment: Mapping[str, str], tell: Callable[[str], None]) -> Settings | None:
    """None for a file that is not to be used."""
    import tomllib  # without a file, the parser is not even loaded

    try:
        with open(path, "rb") as file:
            if stranger := _stranger(os.fstat(file.fileno()), path, environment):  # of what is read, not of its name
                place = shell_word(os.path.dirname(path))
                tell(f"passed over {printable(path)}: {stranger}; SOLORUN_TRUST={place} uses it")
                return None
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
        raw = tomllib.loads(data.decode().replace("\r\n", "\n"))
    except RecursionError:
        raise BadUsage(f"{path} is nested too deeply", "correct that file") from None
    except (OSError, ValueError) as error:
        raise BadUsage(f"{path} cannot be read: {error}", "correct that file") from None
    return _Reader(path).settings(raw)


def _stranger(facts: os.stat_result, path: str, environment: Mapping[str, str]) -> str:
    """Why a file may say what another user wants; empty where it is this user's, root's, or trusted."""
    trusted = [place for place in environment.get("SOLORUN_TRUST", "").split(os.pathsep) if place]
    if os.path.realpath(os.path.dirname(path)) in map(os.path.realpath, trusted):
        return ""
    ours = {0, os.geteuid()}
    if os.geteuid() == 0 and environment.get("SUDO_UID", "").isdigit():
        ours.add(int(environment["SUDO_UID"]))  # who may become root need not be kept from root's commands
    # A link or a second name that another user made of one's own file has one's own words mean files beside it.
    owners = {facts.st_uid, os.lstat(path).st_uid}
    if facts.st_nlink > 1:
        owners.add(os.stat(os.path.dirname(path)).st_uid)
    if strange := sorted(owners - ours):
        return f"it belongs to another user (uid {strange[0]})"
    return "anybody may write it" if facts.st_mode & 0o002 else ""


class _Reader:
    def __init__(self, path: str) -> None:
        from pathlib import Path

        self.path = path
        self.place = Path(path).parent

    def settings(self, raw: dict[str, Any]) -> Settings:
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key == "roots":
                values[key] = tuple(str(self.place / root) for root in self.words(key, value, 'roots = ["results"]'))
            elif key == "runs":
                values[key] = tuple(self.run(name, entry) for name, entry in self.table(key, value).items())
            elif key == "hosts":
                values[key] = tuple(self.host(name, entry) for name, entry in self.table(key, value).items())
            elif key == "notify":
                values[key] = tuple(self.notification(entry) for entry in self.list_of_tables(key, value))
            elif key == "share_accelerator":
                values[key] = self.truth(key, value)
            elif key in Settings.__slots__:
                values[key] = self.number(key, value)
            else:
                raise self.mistake(f"unknown key {key!r}", f"the keys are {', '.join(Settings.__slots__)}")
        values.setdefault("roots", tuple(str(self.place / root) for root in Settings().roots))
        return replace(Settings(), **values)

    def run(self, name: str, raw: Any) -> RunEntry:
        where = f'runs."{name}"'
        entry = self.known(where, raw, ("command", "cwd", "environment"))
        command = self.command(f"{where}.command", entry.get("command"))
        environment = self.table(f"{where}.environment", entry.get("environment", {}))
        if not all(isinstance(value, str) for value in environment.values()):
            raise self.mistake(f"{where}.environment must hold texts", 'write, for example, { OMP_NUM_THREADS = "4" }')
        cwd = self.path_of(self.text(f"{where}.cwd", entry.get("cwd", ".")))
        return RunEntry(self.path_of(name), command, cwd, environment)

    def host(self, name: str, raw: Any) -> HostEntry:
        where = f"hosts.{name}"
        entry = self.known(where, raw, ("ssh", "directory", "command"))
        destination = self.text(f"{where}.ssh", entry.get("ssh", name))
        if not destination or destination.startswith("-"):
            raise self.mistake(f"{where}.ssh must be a destination, not {destination!r}", "write user@host, or a name")
        command = self.command(f"{where}.command", entry.get("command", ["solorun"]))
        return HostEntry(name, destination, self.text(f"{where}.directory", entry.get("directory", "")), command)

    def notification(self, raw: Any) -> NotifyEntry:
        entry = self.known("notify", raw, ("on", *_WAYS))
        on = frozenset(self.words("notify.on", entry.get("on", ["end", "crash", "hang"]), 'on = ["crash"]'))
        if unknown := sorted(on - set(OCCASIONS)):
            raise self.mistake(f"notify.on: unknown occasion {unknown[0]!r}", f"they are {', '.join(OCCASIONS)}")
        if sum(way in entry for way in _WAYS) != 1:
            raise self.mistake("notify needs one of command, webhook, apprise", "write one [[notify]] for each")
        command = self.command("notify.command", entry["command"]) if "command" in entry else ()
        if command and "/" in command[0]:  # a script beside the file is found wherever a run is started
            command = (str(self.path_of(command[0])), *command[1:])
        webhook = self.text("notify.webhook", entry.get("webhook", ""))
        if webhook and not webhook.startswith(("http://", "https://")):
            raise self.mistake(f"notify.webhook must be an http or https URL, not {webhook!r}", "correct it")
        return NotifyEntry(on, command, webhook, self.text("notify.apprise", entry.get("apprise", "")))

    def path_of(self, text: str) -> Path:
        """A path as the file means it: relative to the file, `~` is the home."""
        return self.place / os.path.expanduser(text)

    def command(self, key: str, value: Any) -> tuple[str, ...]:
        import shlex

        try:
            words = shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            raise self.mistake(f"{key}: {error} in {value!r}".replace("No ", "no "), "correct the quotes") from None
        found = self.words(key, words, f'{key.rpartition(".")[2]} = ["python3", "train.py"]')
        if not found:
            raise self.mistake(f"{key} is empty", "name a program")
        return found

    def known(self, key: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
        entry = self.table(key, value)
        if unknown := [name for name in entry if name not in names]:
            raise self.mistake(f"unknown key {key}.{unknown[0]}", f"the keys are {', '.join(names)}")
        return entry

    def table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.mistake(f"{key} must be a table", f"write [{key}]")
        return value

    def list_of_tables(self, key: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.mistake(f"{key} must be a list of tables", f"write [[{key}]]")
        return value

    def words(self, key: str, value: Any, example: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            kind = "paths" if key == "roots" else "texts"
            raise self.mistake(f"{key} must be a list of {kind}", f"write, for example, {example}")
        return tuple(value)

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mistake(f"{key} must be a text", "put it in quotes")
        return value

    def truth(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.mistake(f"{key} must be true or false", "correct that file")
        return value

    def number(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LONGEST_S:
            raise self.mistake(f"{key} must be a number of 0 or more", "correct that file")
        return float(value)

    def mistake(self, what: str, next_step: str) -> BadUsage:
        return BadUsage(f"{self.path}: {what}", next_step)
