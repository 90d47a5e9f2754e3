"""What others rely on: exports, verbs and flags, JSON keys, exit codes, file names, files on disk."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import zlib
from pathlib import Path

import pytest

import solorun
from solorun import errors, forwarded, owner, process, progress, record, rundir, sharing
from solorun.cli import main


def test_the_exports() -> None:
    assert set(solorun.__all__) == {
        "Follower", "Held", "NotSafe", "Refused", "Run", "SolorunError", "__version__", "explain", "hold",
        "require_accelerator",
    }  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+\.\d+", solorun.__version__)


def test_what_a_run_offers() -> None:
    offered = {name for name in dir(solorun.Run) if not name.startswith("_")}
    assert offered >= {
        "ask_to_stop", "beat", "describe", "directory", "enter_phase", "event", "exit_code", "log", "metrics", "phase",
        "progress", "should_stop", "stop_reason",
    }  # fmt: skip
    assert list(inspect.signature(solorun.hold.__init__).parameters) == [
        "self", "directory", "announce", "exit_on_stop", "settle_s", "launcher",
    ]  # fmt: skip


def test_how_a_trainer_asks_for_its_accelerator() -> None:
    parameters = inspect.signature(solorun.require_accelerator).parameters
    assert list(parameters) == ["kind", "share", "tell", "launcher"]
    assert (parameters["share"].default, issubclass(solorun.NotSafe, solorun.SolorunError)) == (False, True)


FLAGS = {
    "check": {"directories", "-h", "--help", "--json", "--share-accelerator"},
    "start": {"--share-accelerator", "directory", "-h", "--help", "--background", "--tmux", "--wait", "--json"},
    "attach": {"directory", "-h", "--help", "-n", "--lines", "--on-interrupt", "--tmux"},
    "status": {"places", "-h", "--help", "--json", "--exit-code", "--all-hosts"},
    "history": {"places", "-h", "--help", "--run", "-n", "--lines", "--json"},
    "logs": {"directory", "-h", "--help", "-f", "--follow", "-n", "--lines"},
    "hosts": {"-h", "--help", "--json"},
    "stop": {"directory", "-h", "--help", "--grace", "--kill", "--json", "--waiting"},
    "notify": {"-h", "--help"},
    "recover": {"directory", "-h", "--help", "--dry-run", "--kill", "--yes", "--grace", "--json"},
}


def test_the_verbs() -> None:
    assert set(main._VERBS) >= set(FLAGS)


@pytest.mark.parametrize("verb", FLAGS)
def test_the_flags_of_a_verb(verb: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"solorun.cli.{verb}").add_arguments(parser)
    known = {name for action in parser._actions for name in (action.option_strings or [action.dest])}
    assert known >= FLAGS[verb]


def test_the_keys_of_status_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training.lock").write_text(f"{os.getpid()}\n")
    assert main.main(["status", "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"schema", "version", "host", "cwd", "runs"}
    assert found["schema"] == 1
    assert set(found["runs"][0]) >= {
        "directory", "state", "pid", "user", "since", "step", "total", "rate", "eta_s", "log_age_s", "step_age_s",
        "phase", "run_id", "host", "command", "memory_bytes", "ended", "detail", "waiting",
        "checkpoint", "checkpoint_age_s",
    }  # fmt: skip


def test_the_keys_of_history_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(OLD_RUN)
    assert main.main(["history", "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert set(found["runs"][0]) >= {
        "directory", "vanished", "run_id", "parent_run_id", "state", "cause", "outcome", "started", "ended", "seconds",
        "first_step", "last_step", "total_steps", "exit_code", "signal", "stopped_by", "user", "host", "pid",
        "command", "last_words",
    }  # fmt: skip


def test_the_keys_of_check_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training.lock").write_text(f"{os.getpid()}\n")
    assert main.main(["check", "--json", "--share-accelerator", str(tmp_path)]) == 4
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"schema", "safe", "directories", "findings", "memory", "disks", "accelerators"}
    assert (found["schema"], found["safe"], found["directories"][0]["state"]) == (1, False, "running")
    keys = {"kind", "severity", "what", "next", "directory", "pid", "user", "command"}
    assert set(found["findings"][0]) >= keys
    assert set(found["memory"]) >= {"total", "available", "swap_total", "swap_used", "pressure", "limit", "strained"}
    assert set(found["disks"][0]) >= {"directory", "free", "inodes", "checkpoint"}


def test_the_kinds_of_findings() -> None:
    from solorun.findings import KINDS

    assert set(KINDS.values()) >= {
        "lock in use", "stale lock cleared", "other training", "same program elsewhere", "orphan", "low memory",
        "low disk", "accelerator in use", "accelerator unknown",
    }  # fmt: skip


def test_the_keys_of_recover_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["recover", "--json", "--dry-run", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {
        "schema", "directory", "scenario", "evidence", "claimants", "plan", "done", "still_running", "quarantine",
        "quarantined", "taken_by", "checkpoint",
    }  # fmt: skip
    from solorun.scenario import NAMES

    assert set(NAMES.values()) >= {
        "nothing to do", "healthy", "stale lock", "hung run", "fighting", "orphaned workers", "unguarded run",
        "abandoned container", "abandoned host", "torn files", "out of reach",
    }  # fmt: skip


def test_the_names_of_the_states() -> None:
    from solorun.runstate import NAMES

    assert set(NAMES.values()) >= {
        "idle", "running", "silent", "hung", "stale", "orphaned", "contested", "foreign", "unreadable",
    }  # fmt: skip


def test_the_exit_codes() -> None:
    codes = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.SolorunError)
    }
    assert codes == {
        "SolorunError": 1, "BadUsage": 2, "Held": 3, "NotSafe": 4, "StillRunning": 5, "Unreachable": 6, "Refused": 7,
        "DirectoryProblem": 1,
    }  # fmt: skip


def test_the_file_names() -> None:
    names = {key: value for key, value in vars(rundir).items() if key.isupper() and isinstance(value, str)}
    assert names.items() >= {
        "LABEL": "training.lock", "OWNER": "training.owner.json", "PID": "training.pid", "LOG": "training.log",
        "OUTPUT": "nohup.out", "RUN": "run.json", "EVENTS": "events.jsonl", "METRICS": "metrics.jsonl",
        "PROGRESS": "progress", "ARCHIVE": "archive", "WAITING": "waiting",
    }.items()  # fmt: skip


def test_the_environment_variables() -> None:
    assert forwarded.VARIABLE == main._FORWARDED == "SOLORUN_FORWARDED"
    assert process.RUN_ID_VARIABLE == "SOLORUN_RUN_ID"
    assert sharing.SHARE_VARIABLE == "SOLORUN_SHARE_ACCELERATOR"
    hold = importlib.import_module("solorun.hold")  # the package's own name `hold` is the class
    assert (hold.LOCK_VARIABLE, hold.SUPERVISOR_VARIABLE) == ("SOLORUN_LOCK_FD", "SOLORUN_SUPERVISOR")


OLD_OWNER = b"""\
{"schema": 1, "run_id": "20261123-213000-0a1b2c3d", "process": {"here": {"host": "studio", \
"machine": "studio/5ca1ab1e", "boot": "0f0e0d0c-0000-4000-8000-000000000001", \
"namespace": "pid:[4026531836]"}, "pid": 4242, "started": 314159}, \
"supervisor": {"here": {"host": "studio", "machine": "studio/5ca1ab1e", \
"boot": "0f0e0d0c-0000-4000-8000-000000000001", "namespace": "pid:[4026531836]"}, "pid": 4241, "started": 314158}, \
"adopted": true, "user": "ada", "argv": ["python3", "kssm/train_kssm_v3.py", "--max-steps", "300"], \
"cwd": "/home/ada/kssm", "since": 1795469400.25, "directory": "/home/ada/kssm/results/kssm_v3", \
"directory_inode": 271828}
"""


def test_an_owner_record_of_the_first_version_still_decodes() -> None:
    place = owner.Here("studio", "studio/5ca1ab1e", "0f0e0d0c-0000-4000-8000-000000000001", "pid:[4026531836]")
    assert owner.decode_owner(OLD_OWNER) == owner.Owner(
        run_id="20261123-213000-0a1b2c3d",
        process=owner.ProcessId(place, 4242, 314159),
        supervisor=owner.ProcessId(place, 4241, 314158),
        adopted=True,
        user="ada",
        argv=("python3", "kssm/train_kssm_v3.py", "--max-steps", "300"),
        cwd="/home/ada/kssm",
        since=1795469400.25,
        directory="/home/ada/kssm/results/kssm_v3",
        directory_inode=271828,
    )


OLD_RUN = """\
{
 "schema": 1,
 "run_id": "20261123-213000-0a1b2c3d",
 "parent_run_id": null,
 "program": ["python3", "kssm/train_kssm_v3.py"],
 "user": "ada",
 "host": "studio",
 "pid": 4242,
 "started": 1795469400.25,
 "fingerprint": "f00d",
 "state": "interrupted",
 "exit_code": 130,
 "signal": 2,
 "first_step": 1,
 "last_step": 120,
 "total_steps": 300,
 "ended": 1795469460.5,
 "why": "SIGINT"
}
"""


def test_a_run_record_of_the_first_version_still_decodes(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(OLD_RUN)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert record.read_record(fd) == record.RunRecord(
            "20261123-213000-0a1b2c3d", None, ("python3", "kssm/train_kssm_v3.py"), "ada", "studio", 4242,
            1795469400.25, "f00d", "interrupted", 130, 2, 1, 120, 300, 1795469460.5, "SIGINT",
        )  # fmt: skip
    finally:
        os.close(fd)


OLD_EVENTS = """\
{"schema": 1, "time": 1795469400.25, "run_id": "r1", "event": "started", "pid": 4242, "user": "ada", "argv": ["t"]}
{"schema": 1, "time": 1795469460.5, "run_id": "r1", "event": "ended", "state": "interrupted", "exit_code": 130, \
"signal": 2, "last_step": 120, "why": "SIGINT"}
{"schema": 1, "time": 1795469500.0, "run_id": "r2", "event": "started", "pid": 4243, "user": "ada", "argv": ["t"]}
{"schema": 1, "time": 1795469600.0, "run_id": "r2", "event": "found dead", "last_step": 7}
"""


def test_a_journal_of_the_first_version_still_tells_how_runs_ended(tmp_path: Path) -> None:
    from solorun.history import runs_of

    (tmp_path / "events.jsonl").write_text(OLD_EVENTS)
    assert [(past.record.run_id, past.record.last_step, past.outcome) for past in runs_of(tmp_path)] == [
        ("r2", 7, "vanished"), ("r1", 120, "interrupted (SIGINT)"),
    ]  # fmt: skip


OLD_PROGRESS = b"1 20261123-213000-0a1b2c3d training 1795469401.000 1 120 300 1795469460.500 0.950 0.480000"


def test_a_heartbeat_of_the_first_version_still_decodes() -> None:
    text = OLD_PROGRESS.ljust(246)
    found = progress.decode(b"%s %08x\n" % (text, zlib.crc32(text)))
    assert found == progress.Progress(
        "20261123-213000-0a1b2c3d", "training", 120, 300, 1795469460.5, 1795469401.0, 0.95, 0.48, 1
    )


def test_a_label_is_one_line_with_a_pid() -> None:
    assert owner.parse_label(b"4242\n") == 4242
