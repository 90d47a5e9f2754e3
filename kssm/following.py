"""What the ranks beside rank 0 do: hear what to train, compute their share of each step, leave when all leave.

They write nothing into the results directory and say nothing but what is wrong on their own machine.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from kssm import kernels, meeting, ranks
from kssm.batches import in_order
from kssm.config import ReadoutName, ScanName
from kssm.corpus import Corpus, prepare
from kssm.device import Compute, choose, prepare_cpu
from kssm.errors import CorpusError, Stopped
from kssm.launched import Launch
from kssm.meeting import Stoppable
from kssm.models import build
from kssm.plan import Plan
from kssm.ranks import Ranks
from kssm.step import Stepper, allocate_state


@dataclass(frozen=True, slots=True)
class Brief:
    """All that a rank has to know beside the weights.

    Args:
        plan: model and training.
        source: text that was named, empty for the embedded one.
        vocabulary: tokenizer that was asked for.
        fingerprint: of the text that rank 0 reads.
        step: at which the run begins.
        micro_batch: sequences at a time.
        compute: device and precision of rank 0.
        readout: who computes v3's readout.
        scan: who computes v4's scan.
        disk_wait_s: how long rank 0 waits for room on a full disk.
    """

    plan: Plan
    source: str
    vocabulary: str
    fingerprint: str
    step: int
    micro_batch: int
    compute: Compute
    readout: ReadoutName
    scan: ScanName
    disk_wait_s: float


def follow(launch: Launch, cache_dir: Path, run: Stoppable) -> int:
    """Be one of the ranks that follow rank 0, to the end of the run.

    Args:
        launch: this process.
        cache_dir: where token files lie on this machine.
        run: hears signals.

    Returns:
        The exit code, the same as rank 0's.

    Raises:
        KssmError: something on this machine does not allow it.
    """
    store = meeting.meet(launch, lambda: run.should_stop)
    word = meeting.hear(store, launch, run)
    if not isinstance(word, Brief):
        return int(word)
    prepare_cpu()
    compute = ranks.own_device(launch, choose(word.compute.device.type, word.compute.precision))
    kernels.choose(word.plan.model, compute, word.readout, word.scan)
    group = Ranks(launch, store, compute.device, word.disk_wait_s)
    try:
        corpus = _corpus(word, group, cache_dir, run)
        _steps(_stepper(word, corpus, compute, group, run), word, group, run)
    except Stopped:
        pass
    group.part()
    return run.exit_code


def share(stepper: Stepper, group: Ranks, run: Stoppable) -> None:
    """Rank 0's side of the beginning: wait until every rank has its text, then share each step with them.

    Raises:
        Stopped: a rank was asked to stop meanwhile.
        LostRank: a rank is gone.
    """
    for _ in ("the first rank of each machine", "the others"):
        _wait(group, run)
    stepper.share(group)


def _wait(group: Ranks, run: Stoppable) -> None:
    if group.agreed(run):
        raise Stopped


def _corpus(word: Brief, group: Ranks, cache_dir: Path, run: Stoppable) -> Corpus:
    """The text, made into tokens by the first rank of each machine and found by the others."""
    if group.launch.local_rank:
        _wait(group, run)
    corpus = _prepared(word, cache_dir, run)
    if not group.launch.local_rank:
        _wait(group, run)
    _wait(group, run)
    if corpus is None:
        raise Stopped
    return corpus


def _prepared(word: Brief, cache_dir: Path, run: Stoppable) -> Corpus | None:
    try:
        corpus = prepare(word.source or None, cache_dir, word.vocabulary, should_stop=lambda: run.should_stop)
    except Stopped:  # the others hear of it where they all ask
        return None
    if corpus.fingerprint != word.fingerprint:
        raise CorpusError(
            f"{word.source or 'the embedded text'} on {socket.gethostname()} is not the text that rank 0 reads: "
            f"fingerprint {corpus.fingerprint[:12]} here, {word.fingerprint[:12]} there",
            "give every machine the same text and tokenizer",
        )
    return corpus


def _stepper(word: Brief, corpus: Corpus, compute: Compute, group: Ranks, run: Stoppable) -> Stepper:
    training = word.plan.training
    model = build(word.plan.model, training.seed).to(compute.device)
    stepper = Stepper(
        model, training, compute, batch=in_order(corpus.train, training), log=lambda _line: None,
        should_stop=lambda: group.agreed(run),
    )  # fmt: skip
    stepper.micro_batch = word.micro_batch
    allocate_state(stepper.optimizer)
    stepper.share(group)
    return stepper


def _steps(stepper: Stepper, word: Brief, group: Ranks, run: Stoppable) -> None:
    for step in range(word.step, word.plan.training.max_steps):
        _wait(group, run)
        stepper.step(step)
