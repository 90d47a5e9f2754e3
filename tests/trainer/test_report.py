"""What people and programs read of a run."""

from __future__ import annotations

import io
import sys

import pytest

from kssm.evaluate import Evaluation
from kssm.report import Report, evaluation_lines, metrics_row, sample_lines, step_line
from kssm.step import StepResult

RESULT = StepResult(
    loss=5.5, ce=5.0, reg=1.0, order_parameter=0.154, order_parameter_std=0.01, order_parameter_layers=(0.1, 0.2),
    u=0.5, coupling=0.125, grad_norm=1.25, lr=4e-4, tokens=2048, seconds=0.5,
)  # fmt: skip
FOUND = Evaluation(
    loss=6.0, ce=5.5, perplexity=244.7, order_parameter=0.2, order_parameter_std=0.01, u=0.4, coupling=0.3, tokens=10
)


def test_v3_lines_have_the_published_columns() -> None:
    line = step_line("v3", 120, 2000, RESULT)
    assert line == "step  120/2000  total  5.500  CE  5.000  reg  1.000  R 0.1540  u_val 0.500  grad norm 1.25"


def test_v2_lines_have_the_published_columns() -> None:
    line = step_line("v2", 120, 2000, RESULT)
    assert line == "step  120/2000  loss  5.500  ppl   148.41  R 0.1540 ± 0.0100  weak  lr 4.00e-04"


def test_v4_lines_tell_synchrony_coupling_and_gradient() -> None:
    line = step_line("v4", 120, 2000, RESULT)
    assert line == "step  120/2000  loss  5.500  ppl   148.41  R 0.1540  k 0.1250  grad norm 1.25  lr 4.00e-04"


def test_metrics_rows_have_the_frozen_keys() -> None:
    frozen = ["step", "ce", "loss", "reg", "R", "u", "k", "grad_norm", "lr", "tokens", "seconds"]
    assert set(frozen) <= set(metrics_row(1, RESULT, None))
    assert {"val_ce", "val_R", "val_u", "val_k"} <= set(metrics_row(1, RESULT, FOUND))
    assert "val_ce" not in metrics_row(1, RESULT, None)


def test_an_evaluation_stands_beside_the_entropies_of_the_text() -> None:
    text = "\n".join(evaluation_lines(5, FOUND, (0.1,), 6.44, 4.02))
    assert "CE 5.5000" in text
    assert "unigram 6.4400, bigram 4.0200" in text


def test_a_sample_cannot_command_the_terminal() -> None:
    assert "\x1b" not in "".join(sample_lines("a\x1b[2Jb\n\n\nc"))


def test_every_line_is_logged_even_when_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(5, "Input/output error")

    lines: list[str] = []
    monkeypatch.setattr(sys, "stdout", Gone())
    report = Report(lines.append, terminal=False)
    report.say("one")
    report.say("two")
    assert lines == ["one", "two"]


def test_a_full_disk_costs_lines_of_the_output_and_how_many_is_said_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Output(io.StringIO):
        is_full = False

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    output, logged = Output(), list[str]()
    monkeypatch.setattr("sys.stdout", output)
    report = Report(logged.append, terminal=False)
    report.say("one")
    output.is_full = True
    report.say("two")
    report.say("three")
    output.is_full = False
    report.say("four")
    report.say("five")
    assert output.getvalue() == "one\n\nWARNING: 2 lines are missing here: the disk was full\nfour\nfive\n"
    assert logged == ["one", "two", "three", "four", "five"]


def test_the_bar_begins_where_a_resumed_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    report = Report(lambda _line: None, terminal=True)
    report.begin("training", "step", 300, 400)
    report.advance(301)
    report.resume_clock()
    report.say("a line above the bar")
    report.advance(400)
    report.end()
    assert "300/400" in screen.getvalue()
    assert "a line above the bar" in screen.getvalue()
