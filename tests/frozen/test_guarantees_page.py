"""docs/guarantees.md tells the counts that are kept, and names only attacks and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.torture import ATTACKS, BEGIN, DOCUMENT, END, Counted, counted, kept, renewed
from tests.faults.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
ONE = Counted(Tally("saving", 2_000, (), {"SIGKILLs": 2_000}), 7, "2026-01-31", 1_800, "abc1234", "a machine")


def test_the_page_in_the_repository_is_what_the_kept_counts_make() -> None:
    page = DOCUMENT.read_text()
    assert renewed(page, counted(kept())) == page


def test_the_page_tells_cases_seed_and_machine_in_the_order_of_the_attacks() -> None:
    page = counted({"later": ONE, "saving": ONE, "fighting": ONE})
    assert "| `saving` | 2,000 | 2,000 SIGKILLs | 0 | 7, abc1234, 2026-01-31, 30 min |" in page
    assert page.index("`fighting`") < page.index("`saving`") < page.index("`later`")
    assert page.count("Machine: a machine.") == 1


def test_what_a_person_wrote_survives_and_a_page_without_its_marks_is_refused() -> None:
    assert renewed(f"before\n{BEGIN}old\n{END}after\n", "new\n") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(ValueError, match="lacks its marks"):
        renewed(BEGIN, "new\n")


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_of_the_long_form_has_a_short_form_in_make_test(name: str) -> None:
    assert (ROOT / f"tests/faults/{name}.py").exists()
    short = ROOT / f"tests/faults/test_{name}.py"
    assert short.exists() or name == "fighting", "that one is tests/processes/test_hammer.py"


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", DOCUMENT.read_text())
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).exists(), (path, test)
