"""Checkpoints, token files and tokenizers damaged or forged: refused by name, or bit for bit what was written.

A forged file has the right digest: whoever makes one can count it. It executes nothing, and its user is told in a line.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kssm import checkpoint, use
from kssm.carried import Carried
from kssm.checkpoint import Loaded
from kssm.config import as_facts, model_config, train_config
from kssm.corpus import Corpus, open_corpus, prepare
from kssm.device import choose
from kssm.errors import KssmError
from kssm.plan import plan_continued
from kssm.snapshot import (
    Snapshot,
    SnapshotFacts,
    TrainState,
    built,
    model_tensors,
    optimizer_tensors,
    restore_optimizer,
)
from kssm.step import Stepper, allocate_state
from kssm.tokenfile import HEADER
from kssm.vocabulary import choose as choose_vocabulary
from kssm.wishes import Wishes
from tests.faults.mutations import GARBAGE, bytewise, cuts, flips, misfits

RUN_ID = "20260101-000000-aaaaaaaa"
_SHAPE = {"hidden": 8, "layers": 2, "oscillators": 4}
_MODELS: dict[str, dict[str, Any]] = {
    "v2": {"positions": 16, "dropout": 0.1},
    "v3": {"positions": 16, "harmonics": 2},
    "v4": {"group": 2},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A damaged file, and what must be true of it: `judge` raises what is wrong."""

    what: str
    data: bytes
    judge: Callable[[Path], None]


def a_text(place: Path) -> Path:
    """A text of two documents."""
    chance = random.Random(3)
    for name in ("a", "b"):
        (place / f"{name}.txt").write_text("".join(chance.choice("to be or not, ") for _ in range(1500)))
    return place


def a_checkpoint(place: Path, corpus: Corpus, name: str) -> Path:
    """A real checkpoint of a very small model, which a run could continue."""
    more = {"carry_state": True} if name == "v4" else {}
    config = model_config(name, "tiny", corpus.vocabulary, **{**_SHAPE, **_MODELS[name]})  # type: ignore[arg-type]
    training = train_config(name, "tiny", batch_size=2, seq_length=8, eval_batches=1, max_steps=9, **more)  # type: ignore[arg-type]
    from kssm.models import build

    model = build(config, 0)
    stepper = Stepper(
        model, training, choose("cpu", "auto"), lambda _step: np.zeros((2, 9), np.int64), lambda _line: None,
        carried=Carried(lambda _step: False) if more else None,
    )  # fmt: skip
    stepper.step(0)
    tensors = model_tensors(model) | optimizer_tensors(stepper.optimizer, model.named_parameters())
    tensors |= stepper.carried.tensors() if stepper.carried else {}
    facts = SnapshotFacts(
        TrainState(1, 16), as_facts(config), as_facts(training), corpus.fingerprint, "", RUN_ID, (RUN_ID,), 2, "bytes"
    )
    return checkpoint.save(place, Snapshot(tensors, facts)).path


def checkpoint_cases(path: Path, chance: random.Random, share: float) -> Iterator[Case]:
    """A checkpoint damaged: each byte of its header and of a part of its data, each length, blocks."""
    sound = path.read_bytes()
    expected = checkpoint.load(path)
    head = 8 + int.from_bytes(sound[:8], "little")

    def judge(path: Path) -> None:
        try:
            found = checkpoint.load(path)
        except KssmError as error:
            _require(str(path) in error.what and "\n" not in error.what, f"names no file: {error.what[:200]}")
            return
        _require(_same(found, expected), "other content than was saved, and nobody noticed")

    spots = [*flips(sound[: head + 256]), *cuts(sound[: head + 256])]
    spots = spots if share >= 1 else chance.sample(spots, int(len(spots) * share))
    for what, data in spots:
        yield Case(what, data if what.startswith("cut") else data + sound[head + 256 :], judge)
    others = (sound[::-1], sound.replace(b"model.", b"motel."))
    for what, data in (*(("garbage", data) for data in GARBAGE), *bytewise(sound, chance, int(20_000 * share), others)):
        yield Case(what, data, judge)


def forged_cases(path: Path, corpus: Corpus, chance: random.Random, share: float) -> Iterator[Case]:
    """A checkpoint whose digest is right and whose header tells of something else, put to every use."""
    sound = path.read_bytes()
    length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["facts"])
    found = [("facts", what, json.loads(data)) for what, data in misfits(facts) if b": null, " not in data]
    names = [name for name in header if name != "__metadata__"]
    for name in chance.sample(names, min(len(names), 4)):
        found += [("entry", f"{name} {what}", {name: json.loads(data)}) for what, data in misfits(header[name])]
    found += [("renamed", f"{name} as {new!r}", (name, new)) for name in names[:6] for new in _NAMES]
    for kind, what, value in found if share >= 1 else chance.sample(found, int(len(found) * share)):
        changed = dict(header)
        if kind == "facts":
            changed["__metadata__"] = {"digest": "0" * 64, "facts": json.dumps(value)}
        elif kind == "entry":
            changed |= value
        else:
            changed = {value[1] if key == value[0] else key: inner for key, inner in header.items()}
        yield Case(f"{kind} {what}", _forged(changed, sound[8 + length :]), lambda path: put_to_use(path, corpus))


_NAMES = (
    "../../x",
    "/tmp/x",
    "optimizer.",
    "optimizer.embedding.weight.__class__",
    "carried.9.9",
    "carried.x",
    "model.",
)


def _forged(header: dict[str, Any], data: bytes) -> bytes:
    header["__metadata__"] = {**header["__metadata__"], "digest": "0" * 64}
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    encoded += b" " * (-len(encoded) % 8)
    whole = len(encoded).to_bytes(8, "little") + encoded + data
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def put_to_use(path: Path, corpus: Corpus) -> None:
    """Sample, evaluate and continue, as the commands would; what a person is told of is well."""
    before = use.prepare
    use.prepare = lambda *_words, **_more: corpus
    try:
        opened = use.open_model(path, path.parent, "cpu")
        opened.text("to", 2, 0.8, 3, 0)
    except KssmError as error:
        _require(bool(error.what) and len(error.what) < 2000, f"no words: {error.what[:100]}")
    finally:
        use.prepare = before
    try:
        found = checkpoint.load(path)
        _continued(found, corpus)
        checkpoint.prune(path.parent, 1, found.snapshot.facts.lineage, found.snapshot.facts.state.step)
    except KssmError as error:
        _require(bool(error.what) and len(error.what) < 2000, f"no words: {error.what[:100]}")


def _continued(found: Loaded, corpus: Corpus) -> None:
    """The first step of a run that continues a checkpoint, on one row of its text."""
    facts = found.snapshot.facts
    name = facts.model.get("name")
    wishes = Wishes(name if name in _MODELS else "v3")  # type: ignore[arg-type]
    plan = plan_continued(wishes, facts, corpus.fingerprint, found.path)
    from kssm.plan import require_vocabulary

    require_vocabulary(found.path, plan.model, corpus.vocabulary)
    model = built(plan.model, plan.training.seed, found.snapshot.tensors)
    training, rows = plan.training, min(plan.training.rows, 4)
    carried = Carried(lambda _step: False) if training.carry_state else None
    length = min(training.seq_length, 8)
    stepper = Stepper(
        model, training, choose("cpu", "auto"), lambda _step: np.zeros((rows, length + 1), np.int64),
        lambda _line: None, carried=carried,
    )  # fmt: skip
    stepper.micro_batch = max(1, min(facts.micro_batch, rows))
    allocate_state(stepper.optimizer)
    restore_optimizer(stepper.optimizer, model.named_parameters(), found.snapshot.tensors)
    if carried is not None:
        carried.restore(found.snapshot.tensors, torch.device("cpu"))
        carried.require_fit(model, training.rows)
    stepper.step(facts.state.step)


def token_cases(path: Path, chance: random.Random, share: float) -> Iterator[Case]:
    """A token file damaged, and forged with right checksums; told as damaged, or the very same tokens."""
    sound = path.read_bytes()
    expected = open_corpus(path)
    train, validation = expected.train.tobytes(), expected.validation.tobytes()

    def judge(path: Path) -> None:
        try:
            found = open_corpus(path)
        except KssmError as error:
            _require(str(path.with_suffix("")) in error.what, f"names no file: {error.what[:200]}")
            return
        same = found.facts == expected.facts and (found.train.tobytes(), found.validation.tobytes()) == (
            train,
            validation,
        )
        _require(same, "other tokens than were written, and nobody noticed")

    def judge_forged(path: Path) -> None:
        try:
            found = open_corpus(path)
        except KssmError:
            return
        largest = max(int(found.train.max()), int(found.validation.max()))
        _require(largest < found.vocabulary, "a token that the vocabulary does not have")

    length = int.from_bytes(sound[8:16], "little")
    spots = [*flips(sound[: 48 + length + 16]), *((f"cut at {n}", sound[:n]) for n in range(0, len(sound), 7))]
    spots = spots if share >= 1 else chance.sample(spots, int(len(spots) * share))
    for what, data in spots:
        yield Case(what, data if what.startswith("cut") else data + sound[48 + length + 16 :], judge)
    for what, data in (*(("garbage", data) for data in GARBAGE), *bytewise(sound, chance, int(8_000 * share))):
        yield Case(what, data, judge)
    found = list(misfits(json.loads(sound[48 : 48 + length])))
    for what, data in found if share >= 1 else chance.sample(found, int(len(found) * share)):
        yield Case(f"forged: {what}", _token_header(data) + sound[HEADER:], judge_forged)
    facts = json.loads(sound[48 : 48 + length])
    for place in range(HEADER, HEADER + 64, 2):
        tokens = sound[HEADER:place] + b"\xff\xff" + sound[place + 2 :]
        facts["sha256"] = hashlib.sha256(tokens).hexdigest()
        yield Case(f"forged: token at {place}", _token_header(json.dumps(facts).encode()) + tokens, judge_forged)


def _token_header(facts: bytes) -> bytes:
    head = b"KSSMTOK1" + len(facts).to_bytes(8, "little") + hashlib.sha256(facts).digest() + facts
    return head.ljust(HEADER, b"\0")


def tokenizer_cases(sound: bytes, text: Path, chance: random.Random, share: float) -> Iterator[Case]:
    """A tokenizer from elsewhere: it makes a corpus, or is refused in words."""

    def judge(path: Path) -> None:
        try:
            made = choose_vocabulary(str(path))
            made.encode_pieces(["to be or not, "])  # type: ignore[union-attr]
            made.decode([0, 1, 2])  # type: ignore[union-attr]
            cache = path.with_suffix(".cache")
            corpus = prepare(text, cache, str(path))
            _require(int(corpus.train.max()) < corpus.vocabulary, "a token that the vocabulary does not have")
        except KssmError as error:
            _require(bool(error.what) and len(error.what) < 2000, f"no words: {error.what[:100]}")

    document = json.loads(sound)
    document["model"]["vocab"] = dict(list(document["model"]["vocab"].items())[:270])
    document["model"]["merges"] = document["model"]["merges"][:4]
    found = list(misfits(document))
    count = int(2_000 * share)
    yield from (Case("garbage", data, judge) for data in GARBAGE)
    yield from (Case(what, data, judge) for what, data in chance.sample(found, min(count, len(found))))
    yield from (Case(what, data, judge) for what, data in bytewise(sound, chance, count))


def _same(one: Loaded, other: Loaded) -> bool:
    a, b = one.snapshot.tensors, other.snapshot.tensors
    if one.snapshot.facts != other.snapshot.facts or a.keys() != b.keys():
        return False
    return all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
