"""One training run from start-up to its end: text, checkpoint, model, loop. Everything slow asks for a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from kssm import checkpoint, following, kernels, leading
from kssm.batches import Batch, batch_digest, carried_begins, in_order, require_enough
from kssm.carried import Carried
from kssm.checkpoint import Loaded
from kssm.config import ModelConfig, TrainConfig, preset_name
from kssm.corpus import Corpus, prepare
from kssm.device import Compute, default_size, prepare_cpu
from kssm.errors import BadUsage, CheckpointError, Stopped
from kssm.following import Brief
from kssm.launched import Launch
from kssm.loop import Guard, Loop, Origin, surroundings
from kssm.models import build
from kssm.plan import Plan, plan_continued, plan_fresh, require_vocabulary
from kssm.ranks import Ranks
from kssm.report import Report
from kssm.saves import Saves
from kssm.snapshot import TrainState, built, restore_optimizer
from kssm.step import Stepper, allocate_state
from kssm.vocabulary import located
from kssm.wishes import Wishes

EMBEDDED = ""
DEFAULT_VOCABULARY = "bpe"


class RunGuard(Guard, Protocol):
    """What a run needs from its guard beside what the loop does."""

    def archive(self, names: Sequence[str]) -> Path | None:
        """Move the files of earlier runs that match these patterns aside."""

    def enter_phase(self, name: str) -> None:
        """Be in another phase from now on."""

    def describe(self, *, fingerprint: str, parent_run_id: str | None) -> None:
        """Write down what this run trains and which run it continues."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a training ended.

    Args:
        complete: whether every step is done.
        state: how far it came; None when it was stopped before there was a model.
        directory: where the results are.
    """

    complete: bool
    state: TrainState | None
    directory: Path


def train(wishes: Wishes, cache_dir: Path, guard: RunGuard, report: Report, launch: Launch | None = None) -> Result:
    """Train as wished in the guard's directory; a stop ends it early, with its state saved.

    Args:
        wishes: what a person said.
        cache_dir: where token files lie.
        guard: who holds the directory.
        report: lines for people.
        launch: this process, rank 0 of several that compute each step together; None for a run of one process.

    Raises:
        KssmError: told in one line what a person must change.
    """
    try:
        return _train(wishes, cache_dir, guard, report, launch)
    except Stopped:
        report.end()
        report.say(f"TRAINING INTERRUPTED - Saving state... ({guard.stop_reason}, before the first step)")
        report.say("no step was made since the last checkpoint: there is nothing to save")
        return Result(complete=False, state=None, directory=guard.directory)


def _train(wishes: Wishes, cache_dir: Path, guard: RunGuard, report: Report, launch: Launch | None) -> Result:
    compute = leading.compute_for(wishes, launch)
    prepare_cpu()
    found = _find_checkpoint(wishes, guard, report)
    corpus, source, vocabulary = _prepare_corpus(wishes, found, cache_dir, guard, report)
    plan = _plan(wishes, found, corpus, compute)
    leading.require_whole_shares(plan.training, compute)
    require_enough(len(corpus.train), len(corpus.validation), plan.training)
    _introduce(plan, corpus, compute, launch, report)
    for line in kernels.choose(plan.model, compute, wishes.readout, wishes.scan):
        report.say(line)
    _require_steps_ahead(plan, found)
    _archive(wishes, guard, report)
    lineage = _lineage(found, guard.run_id)
    _require_running(guard)
    origin = Origin(corpus, source, vocabulary, lineage)
    group: Ranks | None = None
    whole = _is_complete(plan, found)
    if launch is not None and not whole:
        micro_batch, step = _micro_batch(plan.training, compute, found), _state(found).step
        word = Brief(
            plan, source, vocabulary, corpus.fingerprint, step, micro_batch, compute, wishes.readout, wishes.scan,
            wishes.disk_wait_s,
        )  # fmt: skip
        with guard.phase("waiting"):
            group = leading.form(launch, word, guard)
    loop = _assemble(plan, compute, origin, found, guard, report, group, wishes.disk_wait_s)
    guard.describe(fingerprint=corpus.fingerprint[:12], parent_run_id=lineage[-2] if len(lineage) > 1 else None)
    began = "resumed" if found else "begun"
    found = None  # its tensors are as large as model and optimizer, where they live on
    if whole:
        report.say(f"this run is complete: {loop.state.step} of {plan.training.max_steps} steps are done")
        with loop.saves:  # which takes a killed run's reserve away
            return Result(True, loop.state, guard.directory)
    guard.event(began, step=loop.state.step)
    guard.enter_phase("training")
    complete = loop.run()
    if group is not None:
        group.part()
    guard.enter_phase("ending")
    if complete:
        report.say(f"TRAINING COMPLETE: {loop.state.step} steps, best validation CE {loop.state.best_loss:.4f}")
    return Result(complete, loop.state, guard.directory)


def _lineage(found: Loaded | None, run_id: str) -> tuple[str, ...]:
    """The runs behind this one, and it; what torchrun restarts under one supervisor goes on in its own run."""
    before = found.snapshot.facts.lineage if found else ()
    return before if before[-1:] == (run_id,) else (*before, run_id)


def _require_running(guard: RunGuard) -> None:
    if guard.should_stop:
        raise Stopped


def _state(found: Loaded | None) -> TrainState:
    return found.snapshot.facts.state if found else TrainState(step=0, tokens_seen=0)


def _is_complete(plan: Plan, found: Loaded | None) -> bool:
    state = _state(found)
    return state.step >= plan.training.max_steps and state.evaluated_step == state.step


def _micro_batch(training: TrainConfig, compute: Compute, found: Loaded | None) -> int:
    """As configured, but no more than a rank's share, and no more than memory has proven to take."""
    size = min(training.batch_size, training.rows // compute.ranks)
    facts = found.snapshot.facts if found else None
    if facts is not None and facts.training["batch_size"] == training.batch_size:
        size = max(1, min(size, facts.micro_batch))
    return size


def _find_checkpoint(wishes: Wishes, guard: RunGuard, report: Report) -> Loaded | None:
    directory = guard.directory
    if wishes.fresh:
        return None
    found = checkpoint.newest_valid(directory, report.say)
    _require_running(guard)
    if found is None and wishes.resume:
        raise CheckpointError(
            f"--resume: there is no valid checkpoint in {directory}", "leave --resume out to start at step 0"
        )
    return found


def _archive(wishes: Wishes, guard: RunGuard, report: Report) -> None:
    """--fresh: move the earlier run aside, once everything that may be refused has been looked at."""
    if not wishes.fresh:
        return
    checkpoint.clear(guard.directory, report.say)
    archived = guard.archive(("checkpoint_*", "best_model.*", "metrics.jsonl"))
    if archived is not None:
        report.say(f"--fresh: what was here is now in {archived}")


def _require_steps_ahead(plan: Plan, found: Loaded | None) -> None:
    if found is not None and found.snapshot.facts.state.step > plan.training.max_steps:
        step = found.snapshot.facts.state.step
        raise BadUsage(
            f"{found.path} is at step {step}, beyond --max-steps {plan.training.max_steps}",
            f"use --max-steps {step} or more, or --fresh to archive it and start anew",
        )


def _prepare_corpus(
    wishes: Wishes, found: Loaded | None, cache_dir: Path, guard: RunGuard, report: Report
) -> tuple[Corpus, str, str]:
    """The corpus, and how it was named: as said, else as the checkpoint says, else the embedded text."""
    facts = found.snapshot.facts if found else None
    source = str(wishes.text.absolute()) if wishes.text else facts.corpus_source if facts else EMBEDDED
    vocabulary = located(wishes.vocabulary or (facts.vocabulary if facts else DEFAULT_VOCABULARY))
    with guard.phase("tokenizing"):
        corpus = prepare(
            source or None, cache_dir, vocabulary, should_stop=_asker(guard), progress=_Shown(report).show,
            report=report.say,
        )  # fmt: skip
    report.end()
    return corpus, source, vocabulary


def _asker(guard: RunGuard, group: Ranks | None = None, saves: Saves | None = None) -> Callable[[], bool]:
    def asked() -> bool:
        guard.beat()
        if saves is not None:
            saves.look()  # a step may be long: its save is told of as soon as it is durable
        return guard.should_stop if group is None else group.agreed(guard)

    return asked


class _Shown:
    """Shows the progress of reading text: a bar on a terminal, else a line for each phase and each half minute."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._phase = ""
        self._told = time.monotonic()

    def show(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._phase, self._told = phase, time.monotonic()
            self._report.say(f"text: {phase}, {total / 1e6:.1f} MB")
            self._report.begin(phase, "B", 0, total)
        elif time.monotonic() - self._told > 30:
            self._told = time.monotonic()
            self._report.say(f"text: {phase}, {done / 1e6:.1f} of {total / 1e6:.1f} MB")
        self._report.advance(done)


def _plan(wishes: Wishes, found: Loaded | None, corpus: Corpus, compute: Compute) -> Plan:
    if found is not None:
        plan = plan_continued(wishes, found.snapshot.facts, corpus.fingerprint, found.path)
        require_vocabulary(found.path, plan.model, corpus.vocabulary)
        return plan
    return plan_fresh(wishes, wishes.size or default_size(compute.device), corpus.vocabulary)


def _introduce(plan: Plan, corpus: Corpus, compute: Compute, launch: Launch | None, report: Report) -> None:
    model, training, facts = plan.model, plan.training, corpus.facts
    sizes = f"D {model.hidden}, L {model.layers}, N {model.oscillators}, {_of_bank(model)}, V {model.vocabulary:,}"
    batch = f"{training.batch_size} x {training.gradient_accumulation} sequences of {training.seq_length} tokens"
    where = f"{compute.device.type}, {compute.precision}, {torch.get_num_threads()} threads"
    where += f" on each of {compute.ranks} ranks" if compute.ranks > 1 else ""
    for line in (
        f"K-SSM {model.name} {preset_name(model)}: {sizes}; {where}",
        f"text: {facts.source}; tokenizer {facts.tokenizer}; fingerprint {corpus.fingerprint[:12]}",
        f"  {facts.train.tokens:,} tokens to learn from, {facts.validation.tokens:,} held out, by {facts.split}",
        f"training: {training.max_steps} steps of {batch}, lr {training.lr:g}, seed {training.seed}",
        *leading.idle_cores(launch, compute),
    ):
        report.say(line)


def _of_bank(model: ModelConfig) -> str:
    """What of a bank tells the models apart."""
    return f"groups of {model.group}" if model.name == "v4" else f"H {model.harmonics}"


def _assemble(
    plan: Plan,
    compute: Compute,
    origin: Origin,
    found: Loaded | None,
    guard: RunGuard,
    report: Report,
    group: Ranks | None,
    disk_wait_s: float,
) -> Loop:
    seed = plan.training.seed
    model = built(plan.model, seed, found.snapshot.tensors) if found else build(plan.model, seed)
    model = model.to(compute.device)
    training, tokens = plan.training, origin.corpus.train
    batch = in_order(tokens, training)
    saves = Saves(
        guard, report, training.keep, now=lambda owes_best: loop.now(owes_best),
        saved=_state(found) if found else None, disk_wait_s=disk_wait_s,
        hear=lambda: group.hear(guard) if group is not None else None,
    )  # fmt: skip
    stepper = Stepper(
        model, training, compute, batch, log=report.say, should_stop=_asker(guard, group, saves),
        before_update=saves.release, carried=_carried(training, len(tokens)),
    )  # fmt: skip
    stepper.micro_batch = _micro_batch(training, compute, found)
    allocate_state(stepper.optimizer)
    state = _state(found)
    if found is not None:
        restore_optimizer(stepper.optimizer, model.named_parameters(), found.snapshot.tensors)
        if stepper.carried is not None:
            stepper.carried.restore(found.snapshot.tensors, compute.device, state.step)
            stepper.carried.require_fit(model, training.rows)
        _say_what_changed(found, plan, compute, stepper.micro_batch, report)
        _receipt(found, batch(state.step), report)
    else:
        count = sum(parameter.numel() for parameter in model.parameters())
        report.say(f"starting at step 0 with {count:,} parameters")
    if group is not None:
        with guard.phase("waiting"):
            following.share(stepper, group, guard)
    loop = Loop(model, stepper, plan.model, training, compute, origin, state, guard, report, saves, group)
    return loop


def _carried(training: TrainConfig, tokens: int) -> Carried | None:
    if not training.carry_state:
        return None
    return Carried(lambda step: carried_begins(tokens, step=step, rows=training.rows, length=training.seq_length))


def _say_what_changed(found: Loaded, plan: Plan, compute: Compute, micro_batch: int, report: Report) -> None:
    """What keeps the continued run from the very numbers of an unbroken one."""
    facts = found.snapshot.facts
    learning, at_a_time = "max_steps (and with it the learning rates)", "sequences at a time"
    now = {**surroundings(plan.model, compute), learning: plan.training.max_steps, at_a_time: micro_batch}
    saved = {"ranks": "1", **facts.libraries, learning: facts.training.get("max_steps"), at_a_time: facts.micro_batch}
    changed = [f"{name} {saved[name]} -> {now[name]}" for name in now if name in saved and saved[name] != now[name]]
    if changed:
        report.say(f"not bit for bit what an unbroken run would be: {', '.join(changed)}")
    before, after = TrainConfig(**facts.training).held_out_rows, plan.training.held_out_rows
    if before != after:
        report.say(
            f"an evaluation reads {after} held-out sequences instead of {before}: its loss does not compare with those "
            "before, the best model's among them"
        )


def _receipt(found: Loaded, next_batch: Batch, report: Report) -> None:
    """What exactly is continued: enough to check afterwards that nothing was lost or repeated."""
    facts = found.snapshot.facts
    report.say(
        f"resumed from {found.path.name} (sha256 {found.digest[:16]}, run {facts.run_id}) at step {facts.state.step}; "
        f"next batch {batch_digest(next_batch)}"
    )
