"""Numbers that never work are refused while the command line is read: exit status 2, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import solorun
from kssm import cli, flags
from kssm.config import ModelName

Refused = Callable[..., str]

COUNTS = [
    "--max-steps", "--batch-size", "--gradient-accumulation", "--seq-length", "--save-interval", "--eval-interval",
    "--eval-batches", "--log-interval", "--keep", "--lr",
]  # fmt: skip
FROM_ZERO = ["--warmup-steps", "--lambda-reg", "--seed", "--disk-wait"]
NEVER = ["-2", "nan", "1e400", "x", "1" * 400, "1" * 5000]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Types a training that must be refused before the lock; what was said."""

    def hold(*_words: Any, **_named: Any) -> None:
        pytest.fail("the lock was taken")

    monkeypatch.setattr(solorun, "hold", hold)
    monkeypatch.chdir(tmp_path)

    def type_it(model: ModelName, *words: str) -> str:
        try:
            code = cli.main(["train", model, "--output-dir", "mine", *words])
        except SystemExit as left:  # argparse itself
            code = left.code if isinstance(left.code, int) else -1
        assert code == 2
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    return type_it


@pytest.mark.parametrize("value", NEVER)
@pytest.mark.parametrize("flag", [*COUNTS, *FROM_ZERO])
def test_a_number_that_never_works_is_refused_before_the_lock(refused: Refused, flag: str, value: str) -> None:
    said = refused("v3", flag, value)
    assert flag.strip("-").replace("-", "_") in said.replace("-", "_")


@pytest.mark.parametrize("flag", COUNTS)
def test_nothing_at_all_is_refused_where_things_are_counted(refused: Refused, flag: str) -> None:
    assert "is 0" in refused("v3", flag, "0")


@pytest.mark.parametrize("flag", FROM_ZERO)
def test_zero_is_a_value_where_it_means_something(flag: str) -> None:
    flags.wishes(flags.training_parser("v3").parse_args([flag, "0"]))


@pytest.mark.parametrize("value", [*NEVER, "1", "9"])
def test_attention_that_cannot_be_placed_is_refused_before_the_lock(refused: Refused, value: str) -> None:
    assert "attention" in refused("v4", "--attention-every", value)


def test_attention_is_placed_among_the_blocks_of_the_size_that_was_typed(refused: Refused) -> None:
    assert "of 3 blocks" in refused("v4", "--size", "tiny", "--attention-every", "4")
    assert flags.wishes(flags.training_parser("v4").parse_args(["--attention-every", "4"])).shape


@pytest.mark.parametrize("model", ["v2", "v3"])
def test_sequences_beyond_the_models_places_are_refused_before_the_lock(refused: Refused, model: ModelName) -> None:
    assert "512 positions" in refused("v2", "--size", "tiny", "--seq-length", "513")
    assert "1024 positions" in refused(model, "--seq-length", "1025")


@pytest.mark.parametrize("size", ["0", "256", "1000001", "9" * 30, "9" * 5000])
def test_a_vocabulary_that_cannot_be_learned_is_refused_before_the_lock(refused: Refused, size: str) -> None:
    assert "byte-pair vocabulary" in refused("v3", "--vocabulary", f"bpe:{size}")


@pytest.mark.parametrize("flag", ["--vocabulary", "--data-dir", "--output-dir"])
def test_an_empty_name_is_refused_and_never_the_default(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        flags.training_parser("v4").parse_args([flag, ""])
    assert left.value.code == 2
    assert "is a shell variable empty?" in capsys.readouterr().err
