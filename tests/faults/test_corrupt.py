"""Damaged, forged and hostile files: told in a line, passed over, and never executed."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kssm import checkpoint
from kssm.corpus import open_corpus, prepare
from kssm.errors import CorpusError
from kssm.snapshot import TrainState
from kssm.vocabulary import choose
from solorun.hosts import recall
from solorun.owner import decode_owner
from solorun.progress import SIZE, decode
from solorun.record import read_record
from solorun.waiting import decode as decode_ticket
from tests.faults import corrupt_guard as guard
from tests.faults import corrupt_models as models
from tests.faults.corrupt import attack

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--size", "tiny", "--vocabulary", "bytes", "--batch-size", "2", "--seq-length", "32", "--eval-batches", "1")


def test_damage_of_each_kind_to_each_file_is_told_or_passed_over() -> None:
    torch.set_num_threads(1)
    tally = attack(seed=6, share=0.01)
    assert not tally.failures, str(tally)
    assert tally.cases > 2000
    assert len(tally.facts) >= 20, "every file was damaged"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> guard.Scene:
    """What a dead run has left."""
    made = guard.Scene(tmp_path)
    monkeypatch.setenv("SOLORUN_STATE", str(made.state))
    monkeypatch.setenv("SOLORUN_SHARE_ACCELERATOR", "1")
    return made


def _within(memory: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def run(*words: str, cwd: Path, memory: int = 0) -> subprocess.CompletedProcess[str]:
    """A real command line, perhaps with little memory."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=_within(memory) if memory else None,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
def test_a_hundred_megabytes_in_the_place_of_any_file_take_no_memory(scene: guard.Scene) -> None:
    for victim in scene.victims:
        with victim.path.open("r+b") as file:
            file.truncate(100 << 20)
    for words in (("status",), ("history",), ("check", "results/mine"), ("recover", "--dry-run", "results/mine")):
        ended = run("solorun", *words, cwd=scene.place, memory=200 << 20)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "MemoryError" not in ended.stderr
        assert ended.returncode in (0, 2, 3, 4, 7), ended.stderr


@pytest.mark.parametrize("data", [b"", b"\xff" * 500, b"[" * 50_000, b'{"schema": 1, "pid": 1e999}'])
def test_a_start_goes_through_whatever_a_dead_run_left(scene: guard.Scene, data: bytes) -> None:
    for victim in scene.victims:
        if victim.name != "solorun.toml":
            victim.path.write_bytes(data)
    ended = run("solorun", "start", "results/mine", "--", sys.executable, "-c", "print('trained')", cwd=scene.place)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    record = json.loads((scene.results / "run.json").read_text())
    assert record["state"] == "completed"
    assert not (scene.results / "training.lock").exists()


def test_numbers_that_are_none_are_no_record(scene: guard.Scene) -> None:
    sound = json.loads((scene.results / "run.json").read_bytes())
    assert read_record(scene.fd) is not None
    for key, value in (("started", float("inf")), ("ended", 1e300), ("pid", 2**63), ("exit_code", 1.5), ("pid", True)):
        (scene.results / "run.json").write_text(json.dumps({**sound, key: value}))
        assert read_record(scene.fd) is None, key
    owner = json.loads((scene.results / "training.owner.json").read_bytes())
    for key, value in (("argv", "train"), ("adopted", "yes"), ("since", 1e300), ("directory_inode", 1.5)):
        with pytest.raises(ValueError, match=r"."):
            decode_owner(json.dumps({**owner, key: value}).encode())
    ticket = json.loads(scene.ticket.read_bytes())
    for key, value in (("pid", 2**70), ("pid", 0), ("since", float("nan"))):
        assert decode_ticket("x", json.dumps({**ticket, key: value}).encode()) is None


def test_a_heartbeat_with_a_right_checksum_and_no_number_in_it_is_none() -> None:
    import zlib

    line = b"1 run training nan 0 5 100 1790000000 0.1 0.1".ljust(SIZE - 10)
    assert decode(line + b" %08x\n" % zlib.crc32(line)) is None


def test_a_kept_answer_nested_too_deeply_is_none(scene: guard.Scene) -> None:
    (scene.state / "hosts" / "far.json").write_text('{"schema": ' + "[" * 100_000)
    assert recall(scene.state, guard.FAR) is None


@pytest.mark.parametrize(
    "content",
    ["silent_floor_s = 1e999", f"silent_floor_s = {10**400}", "a = " + "[" * 20_000, "\x00", "roots = [1979-05-27]"],
)
def test_settings_of_any_kind_are_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "solorun.toml").write_text(content)
    ended = run("solorun", "status", cwd=tmp_path)
    assert ended.returncode == 2
    assert "solorun.toml" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_that_the_vocabulary_does_not_have_is_damage_and_no_index_error(tmp_path: Path) -> None:
    made = prepare(models.a_text(tmp_path), tmp_path / "cache", "bytes")
    cases = [
        case for case in models.token_cases(made.path, __import__("random").Random(0), 0.01) if "token at" in case.what
    ]
    assert cases
    for case in cases:
        made.path.write_bytes(case.data)
        with pytest.raises(CorpusError, match="has a token 65535, and its vocabulary ends before 257"):
            open_corpus(made.path)


def test_a_tokenizer_with_an_id_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    made = prepare(models.a_text(tmp_path), tmp_path / "cache", "bpe:300")
    document = json.loads(made.document)
    document["model"]["vocab"]["z"] = 2**31
    (tmp_path / "huge.json").write_text(json.dumps(document))
    with pytest.raises(CorpusError, match="has an id 2147483648"):
        choose(str(tmp_path / "huge.json"))


class Payload:
    """Would create a file if anybody unpickled it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def test_nothing_in_any_file_is_executed_by_any_command(tmp_path: Path, scene: guard.Scene) -> None:
    touched = tmp_path / "executed"
    stream = io.BytesIO()
    torch.save({"model": Payload(touched)}, stream)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../../executed", "x")
        archive.writestr("data.pkl", stream.getvalue())
    results, payloads = scene.results, (stream.getvalue(), zipped.getvalue())
    for number, payload in enumerate(payloads):
        (results / f"checkpoint_{number + 5}.safetensors").write_bytes(payload)
        (results / f"checkpoint_{number + 7}.pt").write_bytes(payload)
        (results / "best_model.safetensors").write_bytes(payload)
        for victim in scene.victims:
            if victim.name != "solorun.toml":
                victim.path.write_bytes(payload)
        verbs = [("status",), ("history",), ("check", str(results)), ("recover", "--dry-run", str(results))]
        uses = [
            ("sample", str(results), "--prompt", "x"), ("evaluate", str(results / "checkpoint_5.safetensors")),
            ("train", "v3", "--resume", *QUICK, "--output-dir", str(results)),
        ]  # fmt: skip
        for words in (*(("solorun", *verb) for verb in verbs), *(("kssm", *verb) for verb in uses[number::2])):
            ended = run(*words, cwd=scene.place)
            assert "Traceback" not in ended.stderr + ended.stdout, (words, ended.stderr)
    assert not touched.exists()
    assert not list(tmp_path.rglob("executed"))


def test_names_out_of_a_forged_checkpoint_lead_nowhere_else(tmp_path: Path) -> None:
    corpus = prepare(models.a_text(tmp_path), tmp_path / "cache", "bytes")
    (tmp_path / "results").mkdir()
    path = models.a_checkpoint(tmp_path / "results", corpus, "v3")
    loaded = checkpoint.load(path)
    facts = loaded.snapshot.facts
    evil = replace(facts, run_id="../../../evil", lineage=("../../../evil",), state=TrainState(5, 1))
    tensors = {**loaded.snapshot.tensors, "../../evil": torch.zeros(1)}
    foreign = checkpoint.save(tmp_path / "results", models.Snapshot(tensors, evil)).path
    ours = replace(facts, state=TrainState(5, 1))
    before = {p for p in tmp_path.rglob("*") if (tmp_path / "results") not in p.parents}
    checkpoint.save(tmp_path / "results", models.Snapshot(loaded.snapshot.tensors, ours))
    checkpoint.prune(tmp_path / "results", 1, ["../../../evil"], 9)
    assert {p for p in tmp_path.rglob("*") if (tmp_path / "results") not in p.parents} == before
    assert list((tmp_path / "results").glob(f"{foreign.name}.foreign-*")), "moved aside, within the directory"
