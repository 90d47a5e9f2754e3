"""The training loop: steps, evaluations and saves until done or told to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from kssm import checkpoint, kernels
from kssm.batches import Batch, validation_batches
from kssm.config import ModelConfig, TrainConfig, as_facts
from kssm.corpus import Corpus
from kssm.device import Compute, clear_caches, is_out_of_memory
from kssm.errors import LostRank, StepFailed, Stopped
from kssm.evaluate import Evaluation, evaluate
from kssm.language_model import LanguageModel
from kssm.meeting import Stoppable
from kssm.ranks import Ranks
from kssm.report import Report, evaluation_lines, metrics_row, sample_lines, step_line
from kssm.sample import sample
from kssm.saves import Saves, Witness
from kssm.snapshot import (
    Snapshot,
    SnapshotFacts,
    TrainState,
    library_versions,
    model_tensors,
    optimizer_tensors,
)
from kssm.step import Stepper, StepResult

PROMPT = "The "
SAMPLE_TOKENS = 48


class Guard(Stoppable, Witness, Protocol):
    """What the loop needs from whoever guards the run."""

    @property
    def run_id(self) -> str:
        """Names the run in every checkpoint."""

    @property
    def stop_reason(self) -> str:
        """Why."""

    def progress(self, step: int, total: int) -> None:
        """A step is done."""

    def beat(self) -> None:
        """The run is alive within a long phase."""

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a checkpoint says of the run beside its state.

    Args:
        corpus: the tokens.
        source: text that was named, empty for the embedded one.
        vocabulary: tokenizer that was asked for.
        lineage: ids of the runs that this one continues, oldest first, its own last.
    """

    corpus: Corpus
    source: str
    vocabulary: str
    lineage: tuple[str, ...]


class Loop:
    """One run from its first step to its last.

    Args:
        model: with its weights.
        stepper: with its optimizer's state.
        model_config: of the model.
        config: of the training.
        compute: device and precision.
        origin: what checkpoints say beside the state.
        state: how far the run has come.
        guard: who is told and asked.
        report: lines for people.
        saves: how it saves; its `release` is what the stepper calls before an update.
        ranks: that compute the steps with this one; None for a run of one process.
    """

    def __init__(
        self,
        model: LanguageModel,
        stepper: Stepper,
        model_config: ModelConfig,
        config: TrainConfig,
        compute: Compute,
        origin: Origin,
        state: TrainState,
        guard: Guard,
        report: Report,
        saves: Saves,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.stepper = stepper
        self.model_config = model_config
        self.config = config
        self.compute = compute
        self.origin = origin
        self.state = state
        self.guard = guard
        self.report = report
        self.saves = saves
        self.ranks = ranks
        self._held_out_rows = config.batch_size
        self._before_verdict = state

    def run(self) -> bool:
        """Train to the last step. False when a stop was asked for; its state is saved then.

        Raises:
            CheckpointError: the state at the end cannot be saved, the disk stays full, or no file may be as large.
            KssmError: loss or gradient are not finite.
            LostRank, StepFailed: memory is full, or the ranks cannot go on; the last whole step is saved.
        """
        with self.saves:
            self.saves.require_size()
            return self._run()

    def _run(self) -> bool:
        total = self.config.max_steps
        self.report.begin("training", "step", self.state.step, total)
        try:
            self._go_on(total)
        except (LostRank, StepFailed) as error:
            self.report.end()
            self.report.say(f"{error.what}: saving the state at step {self.state.step}")
            with suppress(Stopped):  # while it waited for room: what ended the run must be told all the same
                self._save_last()
            raise
        self.report.end()
        done = self.state.step >= total and self._evaluated()
        if not done:
            self._say_interrupted()
        try:
            self._save_last()
        except Stopped:  # while its best model waited for room; who resumes evaluates again
            if done:
                self._say_interrupted()
            return False
        return done

    def _say_interrupted(self) -> None:
        self.report.say(f"TRAINING INTERRUPTED - Saving state... ({self.guard.stop_reason}, step {self.state.step})")

    def _go_on(self, total: int) -> None:
        try:
            self._catch_up()
            while self.state.step < total and not self._shall_stop():
                self._advance()
        except Stopped:
            if self.saves.owes_best and self.saves.saved:  # its evaluation is left to who resumes
                self.state = self.saves.saved
            if self.state.step < total:  # the other ranks ask before their next step
                self._shall_stop()

    def _shall_stop(self) -> bool:
        return self.guard.should_stop if self.ranks is None else self.ranks.agreed(self.guard)

    def _evaluated(self) -> bool:
        return self.state.evaluated_step == self.state.step

    def _catch_up(self) -> None:
        """The evaluation that is due at the step where the run begins: at step 0, or one that a stop cut short."""
        if self._due(self.config.eval_interval) and not self._evaluated():
            found = self._evaluate()
            if self.state.step:
                self.guard.metrics(metrics_row(self.state.step, None, found))
            self.show_sample()

    def _advance(self) -> None:
        result = self.stepper.step(self.state.step)
        step = self.state.step + 1
        self.state = replace(self.state, step=step, tokens_seen=self.state.tokens_seen + result.tokens)
        self.guard.progress(step, self.config.max_steps)
        self.saves.look()  # only now, since a full disk has the state of now saved
        self.report.advance(step, f"loss {result.loss:.3f} R {result.order_parameter:.3f}")
        evaluation_due = self._due(self.config.eval_interval)
        if evaluation_due or self._due(self.config.log_interval):
            self.report.say(step_line(self.model_config.name, step, self.config.max_steps, result))
        self._measure(step, result, evaluation_due)
        if step % self.config.save_interval == 0 and step < self.config.max_steps:
            self._save()

    def _measure(self, step: int, result: StepResult, evaluation_due: bool) -> None:
        found: Evaluation | None = None
        try:
            if evaluation_due:
                found = self._evaluate(result.order_parameter_layers)
                self.show_sample()
        finally:  # also where a stop cuts the sample short: who resumes does not evaluate again
            if evaluation_due or self._due(self.config.log_interval):
                self.guard.metrics(metrics_row(step, result, found))

    def _due(self, interval: int) -> bool:
        return self.state.step % interval == 0 or self.state.step == self.config.max_steps

    def _evaluate(self, layers: tuple[float, ...] = ()) -> Evaluation:
        """Evaluate, keep the best.

        Raises:
            Stopped: a stop was asked for meanwhile.
        """
        with self.guard.phase("evaluating"):
            found = self._evaluate_within_memory()
        facts = self.origin.corpus.facts
        for line in evaluation_lines(
            self.state.step, found, layers, facts.validation_cross_entropy, facts.bigram_entropy
        ):
            self.report.say(line)
        self.saves.settle()  # only then it is known which loss the best model on the disk has
        self._before_verdict = self.state
        self.state = replace(self.state, evaluated_step=self.state.step)
        if found.ce < self.state.best_loss:
            if self.state.step:
                self._save_best(found.ce)
            else:
                self._best_is(found.ce)
        return found

    def _evaluate_within_memory(self) -> Evaluation:
        while True:
            try:
                return evaluate(self.model, self._validation(), self.compute, self.config, self._asked_to_stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._held_out_rows == 1:
                    raise self._no_memory("evaluation") from None
            clear_caches(self.compute.device)
            self._held_out_rows = max(1, min(self._held_out_rows, self.stepper.micro_batch) // 2)
            self.report.say(f"evaluation: out of memory; going on with {self._held_out_rows} sequences at a time")

    def _no_memory(self, what: str) -> StepFailed:
        return StepFailed(
            f"{what} at step {self.state.step}: out of memory with one sequence at a time",
            "choose a smaller --size or --seq-length, or stop other programs that use this device",
        )

    def _validation(self) -> Iterator[Batch]:
        """The same windows at every evaluation, as many at a time as memory has proven to take."""
        config, held_out = self.config, self.origin.corpus.validation
        size = min(self._held_out_rows, self.stepper.micro_batch)
        for batch in validation_batches(
            held_out, count=config.eval_batches, rows=config.batch_size, length=config.seq_length
        ):
            yield from (batch[first : first + size] for first in range(0, len(batch), size))

    def _asked_to_stop(self) -> bool:
        self.guard.beat()
        return self.guard.should_stop

    def show_sample(self) -> None:
        """Say a sample of what the model writes now.

        Raises:
            Stopped: a stop was asked for meanwhile.
        """
        with self.guard.phase("sampling"):
            try:
                text = sample_text(self.model, self.origin.corpus, PROMPT, SAMPLE_TOKENS, 0.8, 40, self._asked_to_stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise self._no_memory("sample") from None
        self.report.say(f"sample at step {self.state.step}:")
        for line in sample_lines(text):
            self.report.say(line)
        self.report.resume_clock()

    def _save(self) -> None:
        """Begin to save the state of now."""
        self.saves.settle()  # what a snapshot tells of the best model on the disk must be known
        self.saves.begin(self._snapshot(best=False))

    def _save_best(self, loss: float) -> None:
        """Begin to save the weights of now as the best ones; when that fails, the next ones as good are the best."""
        before = self.state.best_loss
        self.state = replace(self.state, best_loss=loss)
        self.saves.begin(self._snapshot(best=True), best=True, failed=lambda: self._best_is(before))

    def _best_is(self, loss: float) -> None:
        self.state = replace(self.state, best_loss=loss)

    def _save_last(self) -> None:
        self.saves.settle(last=True)
        if self.state.step == 0:
            self.report.say("no step was made: there is nothing to save")
        elif self.state == self.saves.saved:  # not by its step: an evaluation may have been made up for since
            path = checkpoint.checkpoint_path(Path(), self.state.step)
            self.report.say(f"the state at step {self.state.step} is already saved in {path}")
        else:
            self.saves.begin(self._snapshot(best=False))
            self.saves.finish()

    def now(self, owes_best: bool) -> Snapshot:
        """The state of now, valid until the next update.

        Args:
            owes_best: as it was before the last evaluation: the best model that it found is not on the disk.
        """
        state, before = self.state, self._before_verdict
        if owes_best:
            state = replace(state, best_loss=before.best_loss, evaluated_step=before.evaluated_step)
        return self._snapshot(best=False, state=state)

    def _snapshot(self, *, best: bool, state: TrainState | None = None) -> Snapshot:
        tensors = model_tensors(self.model)
        if not best:  # the best model is for use, not for continuing
            tensors |= optimizer_tensors(self.stepper.optimizer, self.model.named_parameters())
            tensors |= self.stepper.carried.tensors() if self.stepper.carried else {}
        facts = SnapshotFacts(
            state=state or self.state,
            model=as_facts(self.model_config),
            training=as_facts(self.config),
            corpus_fingerprint=self.origin.corpus.fingerprint,
            corpus_source=self.origin.source,
            vocabulary=self.origin.vocabulary,
            run_id=self.guard.run_id,
            lineage=self.origin.lineage,
            micro_batch=self.stepper.micro_batch,
            libraries=surroundings(self.model_config, self.compute),
        )
        return Snapshot(tensors, facts)


def surroundings(model: ModelConfig, compute: Compute) -> dict[str, str]:
    """What the exact numbers of a run depend on beside its configuration."""
    threads = str(torch.get_num_threads())
    facts = {
        **library_versions(), "device": compute.device.type, "precision": compute.precision, "threads": threads,
        "ranks": str(compute.ranks),
    }  # fmt: skip
    return facts | kernels.in_use(model, compute)


def sample_text(
    model: LanguageModel,
    corpus: Corpus,
    prompt: str,
    count: int,
    temperature: float,
    top_k: int | None,
    should_stop: Callable[[], bool] = lambda: False,
    seed: int = 0,
) -> str:
    """Prompt and continuation as text."""
    tokenizer = corpus.tokenizer()
    ids = [int(i) for i in tokenizer.encode_pieces([prompt])[0]] or [corpus.facts.end]
    drawn = sample(model, ids, count, temperature=temperature, top_k=top_k, seed=seed, should_stop=should_stop)
    return prompt + tokenizer.decode(drawn)
