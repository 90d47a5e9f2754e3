"""The flags of the `kssm` command: its parsers, and what their answers wish for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from kssm.asked import Asked, Place, settings_of
from kssm.config import ModelName, ReadoutName, ScanName, byte_pairs, model_config, require_fit, train_config
from kssm.errors import BadUsage
from kssm.wishes import Wishes

_YEAR_S = 365 * 86400

_TRAINING: dict[str, tuple[type, str]] = {
    "max_steps": (int, "optimizer steps of the whole run"),
    "batch_size": (int, "sequences per micro-batch"),
    "gradient_accumulation": (int, "micro-batches per optimizer step"),
    "seq_length": (int, "tokens per sequence"),
    "lr": (float, "peak learning rate"),
    "warmup_steps": (int, "steps of linear warm-up"),
    "lambda_reg": (float, "weight of v3's regulariser"),
    "seed": (int, "seed of initial values, data order and noise"),
    "save_interval": (int, "steps between checkpoints"),
    "eval_interval": (int, "steps between evaluations"),
    "eval_batches": (int, "batches per evaluation"),
    "log_interval": (int, "steps between log lines"),
    "keep": (int, "newest checkpoints to keep, beside the best"),
}

_SHAPE: dict[str, tuple[str, bool]] = {
    "published": ("published", True),
    "monostable": ("bistable", False),
    "uncoupled": ("coupled", False),
    "unrotated": ("rotating", False),
}
"""Flags that change the shape of a model: field and value."""


def parser(version: str) -> argparse.ArgumentParser:
    """The parser of `kssm`; `verb` in its answers names the command."""
    found = argparse.ArgumentParser(prog="kssm", description="Kuramoto State-Space language models.")
    found.add_argument("--version", action="version", version=f"kssm {version}")
    commands = found.add_subparsers(metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train a model").add_subparsers(metavar="MODEL", required=True)
    for name in get_args(ModelName):
        _add_training(train.add_parser(name, help=f"K-SSM {name}"), name)
    _add_sample(commands.add_parser("sample", help="text from a checkpoint"))
    _add_evaluate(commands.add_parser("evaluate", help="loss of a checkpoint on held-out text"))
    _add_corpus(commands.add_parser("corpus", help="make a token file, or tell what is in one"))
    return found


def training_parser(model: ModelName) -> argparse.ArgumentParser:
    """The parser of an entry point by path: the flags of `kssm train MODEL`."""
    found = argparse.ArgumentParser(description=f"Train K-SSM {model}, the only run in its results directory.")
    _add_training(found, model)
    return found


def _name(text: str) -> str:
    if not text:  # `--output-dir "$RUN"` without RUN would train into the working directory
        raise argparse.ArgumentTypeError("an empty name was typed: is a shell variable empty?")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def _add_training(parser: argparse.ArgumentParser, model: ModelName) -> None:
    parser.add_argument("--size", choices=("tiny", "small", "medium", "large"), help="default: by device")
    for name, (kind, text) in _TRAINING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)
    _add_text(parser)
    parser.add_argument("--output-dir", type=_path, help=f"results directory (default results/kssm_{model})")
    _add_device(parser)
    parser.add_argument("--share-accelerator", action="store_true", help="train although another run uses the device")
    parser.add_argument(
        "--disk-wait", type=float, default=86400.0, metavar="SECONDS",
        help="how long a run pauses on a full disk before it ends (default 86400, a day; 0: not at all)",
    )  # fmt: skip
    if model != "v4":
        parser.add_argument("--published", action="store_true", help="published initial values and noise")
    if model != "v3":
        parser.add_argument(
            "--dropout", type=float, help=f"probability, in training (default {'0.1' if model == 'v2' else '0'})"
        )
    if model == "v3":
        parser.add_argument("--monostable", action="store_true", help="the published ablation: no clamp on u")
    if model == "v4":
        _add_v4(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--resume", action="store_true", help="there must be a checkpoint to continue")
    which.add_argument("--fresh", action="store_true", help="archive what is there and start anew")
    parser.set_defaults(verb="train", model=model)


def _add_v4(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--carry-state", action="store_true", default=None,
        help="each row of a batch goes on where the step before left it, with the model's state",
    )  # fmt: skip
    parser.add_argument(
        "--attention-every", type=int, default=None, metavar="N",
        help="hybrid: causal attention instead of oscillators in every N-th block",
    )  # fmt: skip
    parser.add_argument("--uncoupled", action="store_true", help="ablation: no mean field")
    parser.add_argument("--unrotated", action="store_true", help="ablation: no rotation, real gates")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=_path, help=".txt or .jsonl file, or a folder of them (default: the plays)")
    parser.add_argument(
        "--vocabulary", type=_name, help="bpe, bpe:SIZE, bytes, tiktoken:NAME or a tokenizer's .json (default bpe)"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--readout",
        default="auto",
        choices=get_args(ReadoutName),
        help="who computes v3's readout: portable anywhere, native on the CPU, triton on CUDA, metal on MPS "
        "(default: the fastest that works)",
    )
    parser.add_argument(
        "--scan",
        default="auto",
        choices=get_args(ScanName),
        help="who computes v4's scan (default: the fastest that works)",
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_path, nargs="?", metavar="DIR", help="results directory or checkpoint file")
    _add_device(parser)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(verb="sample")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--batches", type=int, help="default: 20; with --carry-state the whole text")
    parser.add_argument("--length", type=int, help="tokens in a row (default: as in training); v4 reads any number")
    parser.add_argument("--carry-state", action="store_true", help="one stream, v4's state carried from block to block")
    parser.add_argument(
        "--intervene", action="append", default=[], metavar="WHAT=VALUE[,VALUE...]",
        help="set the order parameter R or the coupling k, beside controls: R=0,0.5,1 or k=0; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--at", choices=get_args(Place), help="where R is set: in the state that is carried on (v4), or in the readout"
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(verb="evaluate")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    _add_text(parser)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(verb="corpus")


def wishes(arguments: argparse.Namespace) -> Wishes:
    """What a person wished of a training.

    Raises:
        BadUsage: a value that never works.
    """
    said_of = vars(arguments)
    given = {name: said_of.get(name) for name in (*_TRAINING, "carry_state")}
    shape: dict[str, Any] = {field: value for flag, (field, value) in _SHAPE.items() if said_of.get(flag)}
    shape |= {name: said_of[name] for name in ("attention_every", "dropout") if said_of.get(name) is not None}
    said = {name: value for name, value in given.items() if value is not None}
    _refuse_what_never_works(arguments, said, shape)  # before the lock
    return Wishes(
        model=arguments.model,
        size=arguments.size,
        training=said,
        shape=shape,
        text=arguments.data_dir,
        vocabulary=arguments.vocabulary,
        device=arguments.device,
        precision=arguments.precision,
        readout=arguments.readout,
        scan=arguments.scan,
        resume=arguments.resume,
        fresh=arguments.fresh,
        disk_wait_s=_disk_wait(arguments.disk_wait),
    )


def _refuse_what_never_works(
    arguments: argparse.Namespace, training: Mapping[str, Any], shape: Mapping[str, Any]
) -> None:
    """Where no size was typed the device or a checkpoint tells it; what the largest cannot be, none can."""
    model = model_config(arguments.model, arguments.size or "large", vocabulary=2, **shape)
    require_fit(model, train_config(arguments.model, arguments.size or "tiny", **training))
    byte_pairs(arguments.vocabulary or "bpe")


def _disk_wait(seconds: float) -> float:
    if not 0 <= seconds <= _YEAR_S:  # a NaN is neither
        raise BadUsage(
            f"--disk-wait is {seconds:g}; it counts seconds, from 0 to {_YEAR_S} (a year)", "write, for example, 3600"
        )
    return seconds


def asked(arguments: argparse.Namespace) -> Asked:
    """What a person asked of an evaluation.

    Raises:
        BadUsage: a value that never works.
    """
    settings = settings_of(arguments.intervene)
    return Asked(arguments.batches, arguments.length, arguments.carry_state, settings, arguments.at)
