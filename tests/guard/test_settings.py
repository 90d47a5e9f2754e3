"""Settings: defaults < `solorun.toml` < environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from solorun.errors import BadUsage
from solorun.settings import Settings, load


def test_without_a_file_the_defaults_stand_below_the_working_directory(tmp_path: Path) -> None:
    found = load(tmp_path, {})
    assert found.roots == (tmp_path / "results", tmp_path / "kssm/results")
    assert found.settle_s == 0.1


def test_a_file_in_a_directory_above_is_found_and_its_roots_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text('roots = ["runs", "/abs"]\nsilent_floor_s = 10\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = load(below, {})
    assert found.roots == (tmp_path / "runs", Path("/abs"))
    assert (found.silent_floor_s, found.silent_factor) == (10.0, Settings().silent_factor)


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text("settle_s = 1")
    below = tmp_path / "a"
    below.mkdir()
    (below / "solorun.toml").write_text("settle_s = 2")
    assert load(below, {}).settle_s == 2


def test_the_environment_overrules_the_file(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text('roots = ["runs"]')
    assert load(tmp_path, {"SOLORUN_ROOTS": "/a:/b c:"}).roots == (Path("/a"), Path("/b c"))
    assert load(tmp_path, {"SOLORUN_ROOTS": ""}).roots == (tmp_path / "runs",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settle = 1", "unknown key 'settle'"),
        ("settle_s = -1", "settle_s must be a number"),
        ("settle_s = nan", "settle_s must be a number"),
        ("settle_s = inf", "settle_s must be a number"),
        ('settle_s = "1"', "settle_s must be a number"),
        ("settle_s = true", "settle_s must be a number"),
        ("settle_s = 1979-05-27", "settle_s must be a number"),
        ('roots = "results"', "roots must be a list"),
        ("roots = [1]", "roots must be a list"),
        ("roots = [", "cannot be read"),
        ("[section]\nx = 1", "unknown key 'section'"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_the_file_and_the_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "solorun.toml").write_text(text)
    with pytest.raises(BadUsage, match=r"solorun\.toml") as told:
        load(tmp_path, {})
    assert words in told.value.what


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadUsage, match="cannot be read"):
        load(tmp_path, {})
