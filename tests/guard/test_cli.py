"""The command line: every verb, every mistake, one clear line and the right exit code."""

from __future__ import annotations

import codecs
import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import solorun
from solorun import process, registry
from solorun.cli.main import main
from solorun.kept import SETTLED_S
from solorun.preflight import judge, look
from solorun.settings import Settings
from solorun.wording import shell_word

from .stage import (
    HOLDING,
    NOBODY,
    PYTHON,
    Child,
    Spawner,
    Terminal,
    a_dead_pid,
    as_nobody,
    label_of,
    names,
    quoted,
    wait_until,
)


@dataclass
class Said:
    """What a command printed, and how it exited."""

    code: int
    out: str
    err: str


Say = Callable[..., Said]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run the command within this process, from an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOLORUN_ROOTS", raising=False)

    def run(*words: str | Path) -> Said:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Said(code, out, err)

    return run


VERBS = ("check", "start", "status", "history", "logs", "stop", "hosts")


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_a_usage_error(say: Say, verb: str) -> None:
    said = say(verb, "--no-such-flag", "x")
    assert said.code == 2
    assert "--no-such-flag" in said.err


@pytest.mark.parametrize("verb", ["start", "logs", "stop"])
def test_a_verb_without_its_directory_is_a_usage_error(say: Say, verb: str) -> None:
    said = say(verb)
    assert said.code == 2
    assert "DIR" in said.err


@pytest.mark.parametrize(
    "words", [["stop", "x", "--grace", "soon"], ["stop", "x", "--grace", "-1"], ["stop", "x", "--grace", "nan"],
              ["logs", "x", "-n", "-1"], ["logs", "x", "-n", "many"], ["nonsense"], []],
)  # fmt: skip
def test_a_wrong_value_is_a_usage_error(say: Say, words: list[str]) -> None:
    assert say(*words).code == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_given(say: Say, verb: str) -> None:
    said = say(verb, "--help")
    assert said.code == 0
    assert f"solorun {verb}" in said.out


def test_the_version_is_told(say: Say) -> None:
    assert say("--version").out.startswith("solorun 0.")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["start", "{}", "--", "true"], 1),
        (["stop", "{}"], 1),
        (["logs", "{}"], 1),
        (["check", "{}"], 4),
        (["status", "{}"], 0),
        (["status", "--exit-code", "{}"], 4),
    ],
)
def test_a_file_in_the_directorys_place_is_told_in_one_line(
    say: Say, tmp_path: Path, words: list[str], code: int
) -> None:
    (tmp_path / "file").write_text("x")
    said = say(*(word.format("file") for word in words))
    assert said.code == code
    assert "file" in said.out + said.err
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("words", "code"), [(["stop", "gone"], 1), (["logs", "gone"], 1), (["check", "gone"], 0), (["status", "gone"], 0)]
)
def test_a_missing_directory_is_told_in_one_line(say: Say, tmp_path: Path, words: list[str], code: int) -> None:
    said = say(*words)
    assert said.code == code
    assert "gone" in said.out + said.err
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["start", "{}", "--", "true"], 1),
        (["stop", "{}"], 1),
        (["logs", "{}"], 1),
        (["logs", "{}/below"], 1),
        (["check", "{}"], 4),
        (["status", "{}"], 0),
    ],
)
def test_a_directory_without_permission_is_told_in_one_line(open_results: Path, words: list[str], code: int) -> None:
    open_results.chmod(0o700)
    answer = said_to_nobody([word.format(open_results) for word in words])
    assert isinstance(answer, list), answer
    assert answer[0] == code
    assert "Permission denied" in answer[1]
    assert "Traceback" not in answer[1]


def said_to_nobody(words: list[str]) -> list[Any]:
    """Exit status and output of a verb that another user types."""

    def ask() -> list[object]:
        said = os.memfd_create("said")
        for number in (1, 2):
            os.dup2(said, number)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - this process ends at once
        os.chdir("/")
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        return [code, os.pread(said, 1 << 16, 0).decode()]

    for verb in VERBS:
        importlib.import_module(f"solorun.cli.{verb}")  # another user may not be able to read the sources
    codecs.lookup("ascii")  # nor this codec, which the verbs read the memory of the machine with
    answer = as_nobody(ask)
    assert isinstance(answer, list), answer
    return answer


@pytest.mark.parametrize("mode", [0o1777, 0o755])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status", "{}"], 0),
        (["check", "{}"], 4),
        (["recover", "--dry-run", "{}"], 7),
        (["recover", "--yes", "{}"], 7),
        (["start", "{}", "--", "true"], 1),
    ],
)
def test_a_stale_lock_that_is_another_users_to_remove_is_told_so_and_nothing_is_promised(
    open_results: Path, words: list[str], code: int, mode: int
) -> None:
    label = open_results / "training.lock"
    label.write_text(f"{a_dead_pid()}\n")
    open_results.chmod(mode)  # with the sticky bit only whose file it is may remove it
    answer = said_to_nobody([word.format(open_results) for word in words])
    text = " ".join(answer[1].split())
    assert answer[0] == code, text
    assert "you may not remove what it left, root may" in text
    assert "ask root to clear it (solorun check), or choose another results directory" in text
    assert "so does the next start" not in text
    assert "plan:" not in text
    assert label.exists()


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_a_stale_lock_that_may_be_removed_is_cleared_whoever_left_it(open_results: Path, mode: int) -> None:
    label = open_results / "training.lock"
    label.write_text(f"{a_dead_pid()}\n")
    open_results.chmod(mode)
    if mode & 0o1000:
        os.chown(label, NOBODY, NOBODY)
    assert "so does the next start" in said_to_nobody(["status", str(open_results)])[1]
    assert said_to_nobody(["check", str(open_results)])[0] == 0
    assert not label.exists()


@pytest.mark.parametrize("is_own", [True, False])
def test_no_user_is_named_for_a_stale_lock_that_none_may_remove(
    open_results: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    (open_results / "training.lock").write_text(f"{a_dead_pid()}\n")
    if is_own:
        os.chown(open_results, NOBODY, NOBODY)
        open_results.chmod(0o555)
    else:  # a disk that went read-only
        flags = SimpleNamespace(f_flag=os.ST_RDONLY, f_files=0, f_favail=0, f_bavail=1 << 30, f_frsize=1)
        monkeypatch.setattr(os, "fstatvfs", lambda _fd: flags)
    answer = said_to_nobody(["check", str(open_results)])
    assert answer[0] == 4
    assert "what it left cannot be removed: Permission denied" in " ".join(answer[1].split())
    assert "to clear it" not in answer[1]


def test_a_stale_lock_that_the_disk_keeps_is_told_with_the_reason(
    say: Say, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")

    def refused(*_words: object, **_named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "training.lock")

    monkeypatch.setattr(os, "rename", refused)
    said = say("check", str(results))
    assert said.code == 4
    text = " ".join(said.out.split())
    assert "what it left cannot be removed: Read-only file system" in text
    assert "the file system is read-only: choose another results directory" in text


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistake_in_the_settings_file_is_told(say: Say, tmp_path: Path, verb: str) -> None:
    (tmp_path / "solorun.toml").write_text("colour = 1")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "training.log").write_text("line\n")
    said = say(verb, *(["r"] if verb != "hosts" else []), *(["--", "true"] if verb == "start" else []))
    if verb in ("logs", "stop"):  # they need no settings
        assert said.code == 0
    else:
        assert said.code == 2
        assert "unknown key 'colour'" in said.err
        assert "next: the keys are roots" in said.err


@pytest.mark.parametrize("words", [["status"], ["check"], ["start", "x", "--", "true"]])
def test_a_working_directory_that_was_deleted_is_told_in_one_line(
    spawn: Spawner, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "here").mkdir()
    code = """
        import os, sys
        os.rmdir(os.getcwd())
        os.execv(sys.executable, [sys.executable, "-P", "-m", "solorun", *sys.argv[1:]])
    """
    child = spawn.python(code, *words, cwd=tmp_path / "here")
    assert child.wait() == 1
    assert "Traceback" not in child.text()
    assert "the working directory: No such file or directory" in child.text()


@pytest.mark.usefixtures("alone")
def test_the_verbs_work_without_a_run(say: Say, tmp_path: Path) -> None:
    assert say("status").out.startswith("no runs found in ")
    said = say("check")
    assert (said.code, said.out.splitlines()[0], said.out.splitlines()[-1]) == (
        0, "directories     no run was ever here", "safe to start",
    )  # fmt: skip
    (tmp_path / "r").mkdir()
    assert say("stop", "r").out == (
        "r: no run to stop\n  and none was ever in this directory; those there are: solorun status\n"
    )
    (tmp_path / "r" / "run.json").touch()
    assert say("stop", "r").out == "r: no run to stop\n"
    (tmp_path / "r" / "run.json").unlink()
    said = say("logs", "r")
    assert (said.code, said.err) == (1, "no log in r yet\n")


def test_status_shows_a_table_and_what_to_do_next(say: Say, tmp_path: Path) -> None:
    for name in ("live", "left", "odd\nname"):
        (tmp_path / "results" / name).mkdir(parents=True)
    (tmp_path / "results" / "live" / "training.lock").write_text(f"{os.getpid()}\n")
    dead = a_dead_pid()
    (tmp_path / "results" / "left" / "training.lock").write_text(f"{dead}\n")
    (tmp_path / "results" / "odd\nname" / "training.log").write_text("")
    said = say("status")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].split() == ["DIRECTORY", "STATE", "PID", "USER", "STEP", "RATE", "LEFT", "LOG"]
    assert lines[1].split()[:2] == ["results/left", "stale"]
    assert lines[2].strip() == f"PID {dead} is dead"
    assert lines[3].strip().startswith("next: solorun check results/left")
    assert lines[4].split()[:3] == ["results/live", "running", str(os.getpid())]
    assert lines[5].strip().endswith("iB")  # what a live run does, here only its memory
    assert lines[6].startswith("results/odd\\nname  idle")
    assert lines[8].startswith("memory of ")
    assert say("status", "--exit-code").code == 4
    assert say("status", "--exit-code", "results/live").code == 0


def test_the_table_fits_80_columns_and_a_long_name_has_a_line_to_itself(
    spawn: Spawner, say: Say, tmp_path: Path
) -> None:
    for name in ("kssm_v3", "a long name/of a directory that/was nested deep", "other"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "training.log").touch()
    live = tmp_path / "results" / "kssm_v3"
    (live / "checkpoint_120000.safetensors").touch()
    child = spawn.python(HOLDING, live)
    child.wait_for("holding")

    def lines_of_a_live_run() -> list[str]:  # seen within the same half second as its last step, once it has a rate
        out = say("status").out
        return out.splitlines() if "/s" in out and "last step 0 s ago" in out else []

    lines: list[str] = wait_until(lines_of_a_live_run)
    assert "LEFT" in lines[0]
    assert max(map(len, lines)) <= 80
    at = lines.index("results/a long name/of a directory that/was nested deep")
    assert lines[at + 1].split()[:2] == ["idle", "-"]
    (about,) = (line for line in lines if line.startswith("  training"))
    assert "last step 0 s ago, checkpoint 120000 " in about
    assert " s ago, " in about.partition("checkpoint")[2]
    assert about.endswith("MiB")


def test_the_next_step_can_be_typed_as_it_stands(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "two words"
    path.mkdir()
    (path / "training.lock").write_text(f"{a_dead_pid()}\n")
    assert "next: solorun check 'two words' " in say("status", path).out


def test_status_as_json_has_every_run(say: Say, results: Path) -> None:
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    found = json.loads(say("status", "--json", results).out)
    assert (found["schema"], [run["state"] for run in found["runs"]]) == (1, ["running"])
    assert json.loads(say("status", "--json").out)["runs"][0]["pid"] == os.getpid()


@pytest.mark.usefixtures("alone")
def test_check_tells_safe_or_not_by_words_json_and_exit_status(say: Say, results: Path) -> None:
    said = say("check", results)
    lines = said.out.splitlines()
    assert (said.code, lines[:2], lines[-1]) == (
        0, ["directories     1 free", "  safe      results/mine"], "safe to start",
    )  # fmt: skip
    dead = a_dead_pid()
    (results / "training.lock").write_text(f"{dead}\n")
    said = say("check")
    assert said.code == 0
    assert f"  safe      results/mine  stale lock cleared: PID {dead} is dead\n" in said.out
    (results / "training.lock").write_text(f"{os.getpid()}\n")
    said = say("check", results)
    assert said.code == 4
    assert f"\n  NOT SAFE  results/mine  running, PID {os.getpid()} of " in said.out
    assert ": reports no steps\n    next: solorun logs -f results/mine" in said.out
    assert said.out.endswith("\nNOT SAFE: 1 finding\n")
    said = say("check", "--json", results)
    found = json.loads(said.out)
    assert (said.code, found["schema"], found["safe"]) == (4, 1, False)
    assert found["directories"][0]["pid"] == os.getpid()
    assert (found["findings"][0]["kind"], found["findings"][0]["pid"]) == ("lock in use", os.getpid())
    (results / "training.lock").unlink()
    found = json.loads(say("check", "--json", results).out)
    assert found["directories"] == [{"directory": str(results), "safe": True, "cleared": ""}]


@pytest.mark.usefixtures("alone")
def test_check_fits_the_terminal_and_has_its_sections(say: Say, results: Path) -> None:
    (results / "training.lock").write_text(f"{a_dead_pid()}\n")
    lines = say("check", results).out.splitlines()
    titles = [line[:16].rstrip() for line in lines[:-1] if not line.startswith(" ")]
    assert titles == ["directories", "other training", "orphans", "memory", "disk", "accelerator"]
    assert max(map(len, lines)) <= 80


def test_logs_shows_the_last_lines(say: Say, results: Path) -> None:
    (results / "training.log").write_text("".join(f"line {n}\n" for n in range(30)))
    assert say("logs", results).out.splitlines() == [f"line {n}" for n in range(20, 30)]
    assert say("logs", results, "-n", "2").out == "line 28\nline 29\n"
    assert say("logs", results, "-n", "0").out == ""


def wait_until_it_follows(child: Child, log: Path) -> None:
    """The following begins a moment after the last lines were shown."""

    def appended() -> bool:
        with log.open("a") as file:
            file.write("new\n")
        return "new" in child.text()

    wait_until(appended)


def test_logs_follows_until_ctrl_c(spawn: Spawner, results: Path) -> None:
    (results / "training.log").write_text("old\n")
    child = spawn.solorun("logs", "-f", results)
    child.wait_for("old")
    wait_until_it_follows(child, results / "training.log")
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    assert "Traceback" not in child.text()


def test_logs_waits_for_a_log_that_is_not_there_yet(spawn: Spawner, results: Path) -> None:
    child = spawn.solorun("logs", "-f", results)
    wait_until(lambda: child.state() == "S")
    (results / "training.log").write_text("first\n")
    child.wait_for("first")
    wait_until_it_follows(child, results / "training.log")
    child.signal(signal.SIGINT)
    assert child.wait() == 0


def test_logs_sends_no_control_characters_to_a_terminal(terminal: Callable[..., Terminal], results: Path) -> None:
    (results / "training.log").write_bytes(b"\x1b[31mred\n")
    screen = terminal(sys.executable, "-m", "solorun", "logs", results)
    assert screen.wait() == 0
    assert "\x1b" not in screen.seen
    assert "[31mred" in screen.seen


def test_stop_tells_how_it_went(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    stop = spawn.solorun("stop", results)
    child.wait()
    assert stop.wait() == 0
    assert f"asking PID {child.pid} to stop" in stop.text()
    assert "stopped at step" in stop.text()


def test_stop_exits_5_when_the_run_still_runs_and_names_the_harder_way(spawn: Spawner, results: Path) -> None:
    child = spawn.python(
        "import signal, time; signal.signal(2, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child.wait_for("up")
    (results / "training.lock").write_text(f"{child.pid}\n")
    stop = spawn.solorun("stop", results, "--grace", "0.2")
    assert stop.wait() == 5
    waited = re.search(rf"still running after (\d+\.\d) s, phase unknown, PID {child.pid}\b", stop.text())
    assert waited, stop.text()
    assert float(waited[1]) >= 0.2
    assert f"next: wait longer, or end it hard: solorun stop --kill {quoted(results)}" in stop.text()


def test_start_refused_exits_3_at_once(spawn: Spawner, results: Path) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    second = spawn.solorun("start", results, "--", "true")
    assert second.wait() == 3
    assert f"is held by PID {child.pid}" in second.text()
    assert label_of(results) == child.pid


def test_a_foreign_run_exits_7(say: Say, results: Path) -> None:
    (results.parent / "theirs").write_text(f"{os.getpid()}\n")
    (results / "training.lock").symlink_to(results.parent / "theirs")
    assert say("stop", results).code == 7
    assert say("start", results, "--", "true").code == 7
    assert names(results) == {"training.lock"}


@pytest.mark.parametrize("verb", ["status", "check"])
def test_a_reader_that_leaves_early_gets_no_complaint(spawn: Spawner, tmp_path: Path, verb: str) -> None:
    for n in range(200):
        (tmp_path / "results" / f"r{n}").mkdir(parents=True)
        (tmp_path / "results" / f"r{n}" / "training.log").touch()
    done = subprocess.run(
        f"{PYTHON} -m solorun {verb} | head -0",
        shell=True, cwd=tmp_path, capture_output=True, text=True, env=spawn.environment(), check=False,
    )  # fmt: skip
    assert done.stderr == ""


def test_a_command_with_its_output_closed_has_no_traceback(spawn: Spawner, results: Path) -> None:
    for line in ("status >&-", "check >&-", f"logs {quoted(results)} >&-", f"stop {quoted(results)} >&- <&-"):
        child = spawn("sh", "-c", f"{PYTHON} -m solorun {line}", cwd=results.parent.parent)
        child.wait()
        assert "Traceback" not in child.text(), line


@pytest.mark.parametrize("verb", ["check", "status", "history", "logs", "stop", "recover", "attach"])
def test_after_two_dashes_come_names_and_none_is_passed_over(say: Say, tmp_path: Path, verb: str) -> None:
    (tmp_path / "-odd").mkdir()
    before, after = say(verb, "./-odd"), say(verb, "--", "-odd")
    assert after.code == before.code
    assert "-odd" in after.out + after.err
    assert "required" not in after.err


@pytest.mark.parametrize("words", [["start", "", "--", "true"], ["stop", ""], ["status", ""], ["recover", "", "--yes"]])
def test_an_empty_name_is_not_the_working_directory(say: Say, tmp_path: Path, words: list[str]) -> None:
    said = say(*words)
    assert said.code == 2
    assert "variable" in said.err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_word_after_the_dashes_belongs_to_the_command(say: Say) -> None:
    assert say("start", "mine", "--", "test", "-z", "").code == 0


@pytest.mark.parametrize(
    "name", ["plain", "-dash", "two words", "it's", "new\nline", "\x1b[31m", "$(true)", "\udcff\udcfe", "b\\'\n"]
)
def test_a_name_in_advice_is_that_name_when_it_is_typed(name: str) -> None:
    word = shell_word(name)
    assert word.isprintable()
    assert not word.startswith("-")
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert os.fsdecode(read).removeprefix("./") == name


def test_attach_tells_a_missing_directory_in_words(say: Say) -> None:
    said = say("attach", "gone")
    assert said.code == 1
    assert said.err.startswith("solorun: cannot look into 'gone': No such file or directory\n  next: ")


def test_logs_of_a_file_says_that_it_is_no_directory(say: Say, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in say("logs", "file").err


def test_a_reader_that_leaves_costs_no_complaint_about_the_log(spawn: Spawner, results: Path) -> None:
    (results / "training.log").write_text("x" * 70 + "\n" * 20_000)
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "solorun", "logs", results, "-n", "10000"],
        stdout=write, stderr=subprocess.PIPE, env=spawn.environment(), check=False,
    )  # fmt: skip
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_check_says_where_this_user_may_not_write() -> None:
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)

    def ask() -> list[str]:
        sight = look([place, place / "new"], 0, Settings(), whole_machine=False)
        return [finding.what for finding in judge(sight, Settings()) if finding.severity == "blocks"]

    try:
        found = as_nobody(ask)
    finally:
        place.rmdir()
    assert found == [f"{place}  you may not write there", f"{place}/new  you may not write there"]


def test_a_command_without_its_dashes_is_told_how_to_write_it(say: Say, tmp_path: Path) -> None:
    said = say("start", "mine", "python3", "train.py", "--lr")
    assert said.code == 2
    assert "solorun start mine -- python3 train.py" in said.err
    assert list(tmp_path.iterdir()) == []


WORDS = [
    [], ["--json"], ["--exit-code"], ["DIR"], ["DIR", "--json"], ["--json", "DIR"], ["--exit-code", "DIR", "--json"],
    ["DIR", "--json", "DIR"], ["--jso", "DIR"], ["--", "DIR"], ["--json", "--json"], ["--nonsense"], ["-h"],
    ["DIR", "nowhere"],
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_status_means_the_same_by_the_short_way_and_by_the_parser(
    say: Say, results: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    (results / "training.lock").write_text("garbage")
    typed = ["status", *(str(results) if word == "DIR" else word for word in words)]
    short = say(*typed)
    monkeypatch.setattr("solorun.cli.status.run_plain", lambda _words: None)
    assert say(*typed) == short


@pytest.mark.parametrize("words", [["status"], ["status", "DIR"], ["status", "DIR", "--exit-code"]], ids=" ".join)
def test_a_status_loads_little(spawn: Spawner, state: Path, results: Path, words: list[str]) -> None:
    registry.note(state, registry.Entry("r1", results, process.here().machine, "studio", "ada", 1.0, 42))
    (results / "training.lock").write_text("garbage")
    typed = [str(results) if word == "DIR" else word for word in words]
    heavy = ("argparse", "dataclasses", "inspect", "re", "typing", "enum", "json", "pathlib", "subprocess", "sqlite3")
    main(typed)  # what the registry tells is kept from here on, as soon as it is no news
    wait_until(lambda: time.time() - (state / "runs.db").stat().st_ctime > SETTLED_S)
    main(typed)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(solorun.__file__).parents[1])!r})\n"
        "from solorun.cli.main import main\n"
        f"main({typed!r})\n"
        f"print('loaded:', [name for name in {heavy!r} if name in sys.modules])"
    )
    # Without the environment's own start, which may load some of them.
    child = spawn(sys.executable, "-I", "-S", "-c", code, cwd=results.parent)
    assert "loaded: []" in child.wait_for("loaded:")
