"""`kssm evaluate`: any length, one stream, interventions; and what it refuses in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kssm import use
from kssm.batches import stream
from kssm.cli import main
from kssm.config import ModelName
from tests.trainer.scenes import PLAYS
from tests.trainer.test_loop import StandIn
from tests.trainer.test_loop import run as train

FROZEN = {
    "schema", "checkpoint", "step", "loss", "ce", "perplexity", "order_parameter", "order_parameter_std", "u",
    "coupling", "tokens", "unigram", "bigram_in_sample",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a v2, a v3 and a v4 that were trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text"
    text.mkdir()
    for number, play in enumerate(PLAYS):
        (text / f"{number}.txt").write_text(play[:1500])
    for name in ("v2", "v3", "v4"):
        (folder / name).mkdir()
        model: ModelName = name  # type: ignore[assignment]
        train(StandIn(folder / name), text, folder / "cache", model, max_steps=2, eval_interval=2)
    torch.set_flush_denormal(False)
    yield folder


@pytest.fixture
def tell(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The exit code of an evaluation and what it printed, to output and to errors."""
    monkeypatch.setenv("KSSM_CACHE", str(trained / "cache"))

    def told(name: str, *words: str) -> tuple[int, str, str]:
        code = main(["evaluate", str(trained / name), "--device", "cpu", *words])
        torch.set_flush_denormal(False)
        said = capsys.readouterr()
        return code, said.out, said.err

    return told


def row(tell: Any, name: str, *words: str) -> dict[str, Any]:
    code, out, err = tell(name, "--json", *words)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_frozen_keys_stay_and_the_length_is_told(tell: Any) -> None:
    found = row(tell, "v3", "--batches", "2")
    assert found.keys() >= FROZEN
    assert (found["length"], found["carried"], found["tokens"]) == (32, False, 2 * 2 * 32)
    assert "interventions" not in found


@pytest.mark.parametrize("length", [1, 3, 500])
def test_v4_is_read_in_windows_of_any_length(tell: Any, length: int) -> None:
    found = row(tell, "v4", "--batches", "2", "--length", str(length))
    assert (found["length"], found["tokens"]) == (length, 2 * 2 * length)


def test_a_stream_reads_each_held_out_token_once_whatever_its_blocks(tell: Any) -> None:
    blocks = [row(tell, "v4", "--carry-state", "--length", length) for length in ("100", "300", "5000")]
    held_out = int(tell("v4", "--length", "5000")[2].split("has ")[1].split()[0])
    assert [found["tokens"] for found in blocks] == [held_out - 1] * 3
    assert all(found["carried"] for found in blocks)
    assert [found["ce"] for found in blocks[1:]] == pytest.approx([blocks[0]["ce"]] * 2, abs=1e-5)
    part = row(tell, "v4", "--carry-state", "--length", "300", "--batches", "2")
    assert part["tokens"] == 600


def test_a_stream_goes_through_the_text_from_end_to_end() -> None:
    blocks = list(stream(torch.arange(11).numpy(), length=4))
    assert [block.tolist()[0] for block in blocks] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10]]
    assert list(stream(torch.arange(1).numpy(), length=4)) == []


@pytest.mark.parametrize(("name", "words", "at"), [
    ("v2", (), "readout"), ("v3", (), "readout"), ("v4", (), "state"), ("v4", ("--at", "readout"), "readout"),
    ("v4", ("--carry-state",), "state"),
])  # fmt: skip
def test_an_intervention_stands_beside_its_controls(tell: Any, name: str, words: tuple[str, ...], at: str) -> None:
    found = row(tell, name, "--batches", "2", "--length", "8", "--intervene", "R=0,1", "--intervene", "k=0.5", *words)
    assert found["at"] == at
    by_name = {each["name"]: each for each in found["interventions"]}
    assert list(by_name) == [
        "R = own", "R = own, shuffled", "R = own, random", "R = 0", "R = 0, random", "R = 1", "R = 1, random",
        "k = own", "k = 0.5",
    ]  # fmt: skip
    assert abs(by_name["R = own"]["difference"]) < 1e-3
    assert by_name["R = 1"]["order_parameter"] == pytest.approx(1, abs=1e-3)
    assert by_name["R = 0"]["order_parameter"] == pytest.approx(0, abs=1e-3)
    assert len(found["meaning"]) == 2
    assert found["ce"] == row(tell, name, "--batches", "2", "--length", "8", *words[:1] * ("carry" in str(words)))["ce"]


def test_a_person_gets_a_table_and_a_sentence(tell: Any) -> None:
    code, out, _ = tell("v4", "--batches", "2", "--intervene", "R=0.5")
    assert code == 0
    assert "set in the state that is carried on:" in out
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("  R = ")] == [
        "R = own", "R = own, shuffled", "R = own, random", "R = 0.5", "R = 0.5, random",
    ]  # fmt: skip
    assert out.splitlines()[-1]
    assert "setting R changes the loss" in out


@pytest.mark.parametrize(("name", "words", "reason"), [
    ("v4", ["--intervene", "R=1.5"], "'1.5' is no value of R, which lies in 0 to 1"),
    ("v4", ["--intervene", "R=-0.1"], "'-0.1' is no value of R"),
    ("v4", ["--intervene", "R=nan"], "'nan' is no value of R"),
    ("v4", ["--intervene", "R=0.5,"], "'' is no value of R"),
    ("v4", ["--intervene", "psi=1"], "only R, the order parameter, and k, the coupling"),
    ("v4", ["--intervene", "R"], "only R, the order parameter, and k, the coupling"),
    ("v4", ["--intervene", "k=1.5"], "v4's coupling lies in 0 to 1"),
    ("v3", ["--intervene", "R=0.5", "--at", "state"], "v3 carries no state"),
    ("v4", ["--intervene", "k=0.5", "--at", "state"], "--at tells where R is set, and none is"),
    ("v3", ["--length", "1025"], "--length 1025: this v3 has learned 1024 positions"),
    ("v2", ["--length", "513"], "--length 513: this v2 has learned 512 positions"),
    ("v3", ["--carry-state"], "v3 remembers nothing"),
    ("v4", ["--length", "100000000"], "the held-out text has"),
    ("v4", ["--length", "0"], "--length counts tokens"),
    ("v4", ["--batches", "0"], "--batches counts batches"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_with_a_next_step(
    tell: Any, name: str, words: list[str], reason: str
) -> None:
    code, out, err = tell(name, *words)
    assert code == 2
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("kssm: ")
    assert reason in first
    assert second.startswith("  next: ")


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_full_memory_is_told_in_one_line_with_a_next_step(
    verb: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_words: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(use, "open_model", full)
    assert main([verb, str(trained / "v4")]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["kssm", "  next"]


def test_a_prompt_that_is_not_utf_8_is_refused_in_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KSSM_CACHE", str(trained / "cache"))
    assert main(["sample", str(trained / "v4"), "--device", "cpu", "--prompt", os.fsdecode(b"caf\xe9")]) == 2
    torch.set_flush_denormal(False)
    assert capsys.readouterr().err.startswith("kssm: the prompt is not UTF-8\n  next: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("words", "code"), [(["corpus", "--vocabulary", "bytes"], 1), (["train", "v4"], 0)])
def test_an_output_on_a_full_disk_leaves_the_exit_code_true(words: list[str], code: int, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n" * 300)
    quick = [] if code else ["--max-steps", "1", "--seq-length", "16", "--eval-batches", "1"]
    places = ["--data-dir", str(text), *([] if code else ["--output-dir", str(tmp_path / "run"), "--device", "cpu"])]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "kssm", *words, *quick, *places], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**kept, "KSSM_CACHE": str(tmp_path / "cache"), "SOLORUN_STATE": str(tmp_path / "state")}, check=False,
        )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert "Error" not in ended.stderr
    if code:
        assert ended.stderr.splitlines()[-2].startswith("kssm: cannot write the answer: no space left")
