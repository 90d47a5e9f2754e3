"""The `kssm` command. Takes the lock before torch is imported, so that a refusal comes at once."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import solorun
from kssm import flags
from kssm.config import ModelName
from kssm.errors import BadUsage, KssmError, LostRank, NotFinite
from kssm.launched import Launch, launched
from kssm.wishes import Wishes

if TYPE_CHECKING:
    from kssm.use import Opened

ROOT = Path(__file__).resolve().parent.parent
"""The project's root in a checkout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    return _guarded(_parsed(flags.parser(solorun.__version__), argv))


def train_main(model: ModelName, argv: Sequence[str] | None = None) -> int:
    """What `kssm/train_kssm_v3.py` and its sister run: `kssm train MODEL` with the same flags."""
    return _guarded(_parsed(flags.training_parser(model), argv))


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; of several ranks with the same mistake in them, rank 0 alone tells it."""
    follows = os.environ.get("RANK", "0") != "0" and "WORLD_SIZE" in os.environ
    with contextlib.redirect_stderr(io.StringIO()) if follows else contextlib.nullcontext():
        return parser.parse_args(argv)


def _guarded(arguments: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show must not end a run
            stream.reconfigure(errors="replace")
    try:
        return _told(lambda: _VERBS[arguments.verb](arguments))
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """What a full disk did not take of the output, Python would try once more at its end, and exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # none, where it was closed from the beginning
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _told(run: Callable[[], int]) -> int:
    """The exit code of a command; what went wrong is said in words."""
    try:
        code = run()
    except solorun.SolorunError as error:
        return _fail(solorun.explain(error), error.exit_code)
    except KssmError as error:
        return _fail(_explain(error), error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return code


def _fail(text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # where the output is on the full disk too, the exit code still tells
        print(f"kssm: {text}", file=sys.stderr, flush=True)
    return code


def _explain(error: KssmError) -> str:
    return error.what + (f"\n  next: {error.next_step}" if error.next_step else "")


def _train(arguments: argparse.Namespace) -> int:
    launch = launched(os.environ)
    if launch is None:
        return _lead(arguments, None)
    code = _follow(arguments, launch) if launch.rank else _lead_others(arguments, launch)
    return _leave(code) if launch.world > 1 else code


def _lead_others(arguments: argparse.Namespace, launch: Launch) -> int:
    """Be rank 0, and tell the other ranks and the launcher how it ended."""
    code, stopped = 1, False
    try:
        code = _told(lambda: _lead(arguments, launch))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
        stopped = code > 128
    finally:
        if launch.world > 1:
            _send_home(launch, code)
        launch.end_launcher(code, stopped=stopped)
    return code


def _leave(code: int) -> NoReturn:
    """End at once: a thread of the group may still wait, or want Python while it is torn down, and C++ then aborts.

    Rank 0 leaves first, also at the end of a whole run, so that the others' group always falls apart.
    """
    _let_go_of_output()
    os._exit(code)


def _send_home(launch: Launch, code: int) -> None:
    from kssm.meeting import send_home

    send_home(launch, code)


def _follow(arguments: argparse.Namespace, launch: Launch) -> int:
    """Be one of the ranks beside rank 0, which holds the directory and speaks for all."""
    with solorun.Follower() as run:
        _require_libraries()
        try:
            flags.wishes(arguments)
        except BadUsage as error:
            return error.exit_code
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from kssm.following import follow

        try:
            code = follow(launch, cache_directory(), run)
        except (LostRank, NotFinite) as error:  # rank 0 says it, or torchrun
            return error.exit_code
        except KssmError as error:
            return _fail(f"rank {launch.rank}: {_explain(error)}", error.exit_code)
    if launch.local_world < launch.world:  # rank 0's own torchrun hears it from rank 0
        launch.end_launcher(code, stopped=run.should_stop)
    return code


def _lead(arguments: argparse.Namespace, launch: Launch | None) -> int:
    _require_libraries()
    wishes = flags.wishes(arguments)
    if launch is not None and wishes.fresh and (launch.attempt or launch.restarts_left):
        raise BadUsage(
            "--fresh would archive the run anew each time that torchrun restarts it",
            "leave --max-restarts out, or name a new --output-dir instead of --fresh",
        )
    directory = arguments.output_dir or _default_results(arguments.model)
    with solorun.hold(directory, announce=_announce, launcher=launch.launcher if launch else None) as run:
        try:
            _train_held(wishes, run, launch, share=arguments.share_accelerator)
        except (KssmError, solorun.SolorunError) as error:
            text = _explain(error) if isinstance(error, KssmError) else solorun.explain(error)
            run.log(f"ERROR: {text}")
            run.event("failed", what=error.what)
            raise SystemExit(_fail(text, error.exit_code)) from None
        if not run.should_stop:
            _say_what_next(directory)
    return 0


def _announce(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # the terminal is gone
        return


def _train_held(wishes: Wishes, run: solorun.Run, launch: Launch | None, *, share: bool) -> None:
    _announce(f"run {run.run_id} in {run.directory}, PID {os.getpid()}")
    run.log(f"run {run.run_id} in {run.directory}, PID {os.getpid()}")
    # Waiting threads that spin make two threads slower than one on a machine that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from kssm.device import available, memory_in_words
    from kssm.ranks import device_of
    from kssm.report import Report
    from kssm.train import train

    def warn(line: str) -> None:
        _announce(f"warning: {line}")
        run.log(f"warning: {line}")

    ranks = launch if launch is not None and launch.world > 1 else None
    best = device_of(wishes.device) if ranks else available()[0] if wishes.device == "auto" else wishes.device
    solorun.require_accelerator(best, share=share, tell=warn, launcher=launch.launcher if launch else None)
    with memory_in_words():
        train(wishes, cache_directory(), run, Report(run.log), ranks)


def _say_what_next(directory: Path) -> None:
    where = _relative(directory)
    _announce(
        f"\nmade in {where}: checkpoints, best_model.safetensors, metrics.jsonl, training.log\n"
        f"next:\n"
        f"  kssm sample {where} --prompt 'To be'      text from the best model\n"
        f"  kssm evaluate {where}                     its loss on the held-out text\n"
        f"  solorun status {where}                    how the run ended"
    )


def _relative(path: Path) -> str:
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _sample(arguments: argparse.Namespace) -> int:
    _require_libraries()
    if arguments.tokens < 1:
        raise BadUsage("--tokens counts tokens, 1 or more", "write, for example, --tokens 200")
    said = arguments.prompt, arguments.tokens, arguments.temperature, arguments.top_k, arguments.seed
    return _answer(_computed(arguments, lambda opened: [opened.text(*said)]))


def _evaluate(arguments: argparse.Namespace) -> int:
    asked = flags.asked(arguments)
    _require_libraries()
    return _answer(_computed(arguments, lambda opened: opened.evaluation(asked, as_json=arguments.json)))


def _computed(arguments: argparse.Namespace, use: Callable[[Opened], list[str]]) -> list[str]:
    """What somebody makes of the model that was named."""
    from kssm.device import memory_in_words
    from kssm.use import open_model

    cache, how = cache_directory(), (arguments.device, arguments.precision, arguments.readout, arguments.scan)
    with memory_in_words():
        return use(open_model(_named(arguments), cache, *how))


def _corpus(arguments: argparse.Namespace) -> int:
    _require_libraries()
    from kssm.corpus import prepare
    from kssm.report import corpus_lines

    corpus = prepare(
        arguments.data_dir, cache_directory(), arguments.vocabulary or "bpe",
        report=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    return _answer(corpus_lines(corpus, as_json=arguments.json))


def _answer(lines: Sequence[str]) -> int:
    """What was asked for, to the standard output; 0. Raises KssmError where that takes no more."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        from kssm.atomicfile import reason, remedy

        raise KssmError(f"cannot write the answer: {reason(error)}", remedy(error)) from None
    return 0


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train, "sample": _sample, "evaluate": _evaluate, "corpus": _corpus,
}  # fmt: skip


def _named(arguments: argparse.Namespace) -> Path:
    return arguments.directory or _default_results("v3")


def project_root() -> Path:
    """The checkout that this package is in, or the working directory when it was installed elsewhere."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def _default_results(model: str) -> Path:
    return project_root() / "results" / f"kssm_{model}"


def cache_directory() -> Path:
    """Where token files lie."""
    return Path(os.environ.get("KSSM_CACHE", "") or project_root() / "data")


def _require_libraries() -> None:
    missing = [name for name in ("torch", "numpy", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadUsage(
            f"{', '.join(missing)} is not installed for {sys.executable}",
            "run `make install` in the project, then use .venv/bin/python3 (or `. .venv/bin/activate`)",
        )
