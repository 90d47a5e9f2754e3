"""What a run tells: lines for people, on the terminal and in the log, and a progress bar where there is a terminal."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from kssm.atomicfile import lacks_room
from kssm.corpus import Corpus
from kssm.evaluate import Evaluation
from kssm.oscillators import zone
from kssm.step import StepResult


class Report:
    """Says lines; draws a bar below them on a terminal.

    Args:
        log: appends a line to the run's log.
        terminal: whether the standard output is one; None looks.
    """

    def __init__(self, log: Callable[[str], None], terminal: bool | None = None) -> None:
        self._log = log
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._mute = False
        self._lost = 0

    def say(self, line: str) -> None:
        """A line to the log and the standard output. A terminal that is gone, or a full disk, must not end the run."""
        self._log(line)
        if self._mute:
            return
        try:
            if self._bar is not None:
                self._bar.write(line, file=sys.stdout)
            else:
                self._print(line)
        except OSError as error:
            self._mute = not lacks_room(error)  # a full disk costs lines, and may have room for the next ones
            self._lost += 1

    def _print(self, line: str) -> None:
        if self._lost:  # the first of them may have been cut in the middle
            print(f"\nWARNING: {self._lost} lines are missing here: the disk was full", flush=True)
            self._lost = 0
        print(line, flush=True)

    def begin(self, what: str, unit: str, done: int, total: int) -> None:
        """Draw a bar from `done` on; without a terminal nothing is drawn."""
        self.end()
        if not self._terminal or self._mute:
            return
        import tqdm

        # Its monitor thread would be one more that a signal may find in the middle of a print.
        tqdm.tqdm.monitor_interval = 0
        scale = unit == "B"
        self._bar = tqdm.tqdm(
            total=total, initial=done, desc=what, unit=unit, unit_scale=scale, file=sys.stdout, leave=False,
            dynamic_ncols=True, smoothing=0.1,
        )  # fmt: skip

    def advance(self, done: int, note: str = "") -> None:
        """Move the bar."""
        if self._bar is None:
            return
        try:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        except OSError:
            self._bar, self._mute = None, True

    def resume_clock(self) -> None:
        """Leave the time since the last step (an evaluation, a save) out of the bar's rate."""
        if self._bar is not None:
            self._bar.unpause()

    def end(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.close()
            except OSError:
                self._mute = True


def step_line(name: str, step: int, total: int, result: StepResult) -> str:
    """One logged step: v3's columns step, total, CE, reg, R, u_val, grad norm; v2's step, loss, perplexity, R, tone.

    v4's are step, loss, perplexity, R, k, grad norm and the learning rate.
    """
    head = f"step {step:>{len(str(total))}}/{total}"
    if name == "v2":
        return (
            f"{head}  loss {result.loss:6.3f}  ppl {perplexity(result.ce):8.2f}  R {result.order_parameter:.4f} "
            f"± {result.order_parameter_std:.4f}  {zone(result.order_parameter)}  lr {result.lr:.2e}"
        )
    if name == "v4":
        return (
            f"{head}  loss {result.loss:6.3f}  ppl {perplexity(result.ce):8.2f}  R {result.order_parameter:.4f}  "
            f"k {result.coupling or 0.0:.4f}  grad norm {result.grad_norm:.2f}  lr {result.lr:.2e}"
        )
    return (
        f"{head}  total {result.loss:6.3f}  CE {result.ce:6.3f}  reg {result.reg:6.3f}  "
        f"R {result.order_parameter:.4f}  u_val {result.u or 0.0:.3f}  grad norm {result.grad_norm:.2f}"
    )


def perplexity(ce: float) -> float:
    """exp(ce), infinite where that overflows."""
    import math

    return math.exp(ce) if ce < 700 else math.inf


def evaluation_lines(
    step: int, found: Evaluation, layers: tuple[float, ...], unigram: float, bigram: float
) -> list[str]:
    """An evaluation beside what tables of the same text know."""
    u = "" if found.u is None else f"  u {found.u:.3f}"
    u += "" if found.coupling is None else f"  k {found.coupling:.3f}"
    per_layer = "  R per layer " + " ".join(f"{value:.3f}" for value in layers) if layers else ""
    values = f"val loss {found.loss:.4f}  CE {found.ce:.4f}  perplexity {found.perplexity:.1f}"
    return [
        f"evaluation at step {step}: {values}",
        f"  R {found.order_parameter:.4f} ({zone(found.order_parameter)}){u}{per_layer}",
        f"  the text itself, nats per token: unigram {unigram:.4f}, bigram {bigram:.4f} (in sample)",
    ]


def metrics_row(step: int, result: StepResult | None, found: Evaluation | None) -> dict[str, Any]:
    """A line of `metrics.jsonl`; its keys are frozen, the run id is added by whoever writes it.

    Args:
        step: steps done.
        result: of the step; None when a resumed run makes up for an evaluation, and its training values are null.
        found: of the evaluation, where there was one.
    """
    if result is None:
        names = ("ce", "loss", "reg", "R", "u", "grad_norm", "lr", "tokens", "seconds", "R_layers", "k")
        row: dict[str, Any] = {"step": step, **dict.fromkeys(names)}
    else:
        row = _step_row(step, result)
    if found is not None:
        row.update(val_ce=found.ce, val_R=found.order_parameter, val_u=found.u, val_k=found.coupling)
    return row


def _step_row(step: int, result: StepResult) -> dict[str, Any]:
    return {
        "step": step, "ce": result.ce, "loss": result.loss, "reg": result.reg, "R": result.order_parameter,
        "u": result.u, "grad_norm": result.grad_norm, "lr": result.lr, "tokens": result.tokens,
        "seconds": round(result.seconds, 6), "R_layers": list(result.order_parameter_layers),
        "k": result.coupling,
    }  # fmt: skip


def sample_lines(text: str) -> list[str]:
    """A sample as an indented paragraph; control characters are shown: a model may emit anything."""
    clean = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    flat = " / ".join(part for line in clean.split("\n") if (part := line.strip()))
    return textwrap.wrap(flat, 78, initial_indent="  | ", subsequent_indent="  | ") or ["  | (nothing but blank lines)"]


def corpus_lines(corpus: Corpus, *, as_json: bool) -> list[str]:
    """What a token file holds, as lines or as one JSON object."""
    facts = corpus.facts
    if as_json:
        return [json.dumps({"schema": 1, "path": str(corpus.path), **asdict(facts)})]
    held_out = f"{facts.validation.tokens:,} tokens, {facts.validation.bytes:,} bytes"
    under = f"held-out text under the unigrams of the rest {facts.validation_cross_entropy:.4f}"
    return [
        f"{corpus.path}",
        f"  text         {facts.source}, fingerprint {facts.fingerprint[:12]}",
        f"  tokenizer    {facts.tokenizer}, {facts.vocabulary:,} tokens",
        f"  to learn     {facts.train.tokens:,} tokens, {facts.train.bytes:,} bytes, {facts.train.documents} documents",
        f"  held out     {held_out}, {facts.validation.documents} documents (split by {facts.split})",
        f"  nats/token   unigram {facts.unigram_entropy:.4f}; {under}; bigram {facts.bigram_entropy:.4f} (in sample)",
    ]
