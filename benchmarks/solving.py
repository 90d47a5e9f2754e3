"""One model learns one puzzle, and is tested at lengths that it was not trained at.

    python3 -m benchmarks.solving JOB --into FILE

Trained at length 64 with AdamW, a warm-up and a cosine; nothing is chosen by a test: the last weights are tested, on
sheets that training never draws. Suffixes as in `benchmarks.puzzles`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from benchmarks.gpt import GPT, Shape
from benchmarks.puzzles import NO_ANSWER, PUZZLES, Puzzle, drawn
from benchmarks.solvers import JOBS, LENGTH, LENGTHS, ROWS, TEST_ROWS, Job, Solver
from kssm.atomicfile import replacing
from kssm.config import TrainConfig, model_config
from kssm.language_model import EMBEDDING_STD, LanguageModel
from kssm.models import build
from kssm.schedule import lr_at
from kssm.step import adamw

_AT_A_TIME = 16  # rows of a test: 1,024 positions each


def made(solver: Solver, puzzle: Puzzle, seed: int) -> nn.Module:
    """The solver with its initial values; they follow from the seed alone."""
    if not solver.oscillators:
        return _gpt(solver, puzzle, seed)
    model = build(
        model_config(
            "v4", "tiny", puzzle.vocabulary, hidden=solver.hidden, layers=solver.layers,
            oscillators=solver.oscillators, **solver.shape,
        ),
        seed,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "contract.weight")):
                parameter.normal_(std=solver.joins, generator=random)
            elif name.endswith(".weight") and parameter.ndim == 2:
                parameter *= solver.std / EMBEDDING_STD
            if name.endswith(".taps"):
                parameter[:-1] *= solver.taps
                parameter[-1] = 1 + (parameter[-1] - 1) * solver.taps
    return model


def _gpt(solver: Solver, puzzle: Puzzle, seed: int) -> nn.Module:
    shape = Shape(puzzle.vocabulary, solver.hidden, solver.layers, solver.hidden // 32, max(LENGTHS))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= solver.std / 0.02
        if not solver.positions:
            model.positions.weight.zero_().requires_grad_(requires_grad=False)
    return model


def logits(model: nn.Module, tokens_BS: Tensor) -> Tensor:
    """[B, S, V]."""
    if isinstance(model, LanguageModel):
        return model.logits(model(tokens_BS).hidden_BSD)
    found: Tensor = model(tokens_BS)
    return found


def length_at(step: int, solver: Solver) -> int:
    """Positions of a step's sheets: from the first length to the full one by eights."""
    grown = min(1.0, step / (solver.steps // 2))
    return 8 * int((solver.first + (LENGTH - solver.first) * grown) / 8)


def train(model: nn.Module, job: Job) -> list[float]:
    """Learn the puzzle; the mean loss of every hundred steps, nats per answer."""
    puzzle, solver = PUZZLES[job.puzzle], job.solver
    config = TrainConfig(
        batch_size=ROWS, gradient_accumulation=1, seq_length=LENGTH, max_steps=solver.steps,
        warmup_steps=min(100, solver.steps // 4), lr=solver.rate, beta2=0.99, weight_decay=0.0, seed=job.seed,
    )  # fmt: skip
    optimizer, losses = adamw(model, config), torch.zeros(solver.steps)
    for step in range(solver.steps):
        length = length_at(step, solver)
        sheet = drawn(puzzle, "train", job.seed, step, ROWS * LENGTH // length, length)
        asked = sheet.answers_BS != NO_ANSWER
        found, answers = logits(model, sheet.tokens_BS)[asked], sheet.answers_BS[asked]
        loss = F.cross_entropy(found, answers, label_smoothing=solver.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        optimizer.step()
        losses[step] = loss.detach()
    return [round(float(part.mean()), 5) for part in losses.split(100)]


@torch.no_grad()
def test(model: nn.Module, job: Job, length: int, rows: int = TEST_ROWS) -> tuple[float, float]:
    """The share of right answers among all, and among those in the last eighth of the positions."""
    right, asked = torch.zeros(length), torch.zeros(length)
    for part in range(0, rows, _AT_A_TIME):
        sheet = drawn(PUZZLES[job.puzzle], "test", job.seed, part, min(_AT_A_TIME, rows - part), length)
        answered_BS = logits(model, sheet.tokens_BS).argmax(-1)
        right += (answered_BS == sheet.answers_BS).sum(0)
        asked += (sheet.answers_BS != NO_ANSWER).sum(0)
    late = slice(length - length // 8, None)
    return float(right.sum() / asked.sum()), float(right[late].sum() / asked[late].sum())


@torch.no_grad()
def coupling(model: nn.Module, job: Job) -> float | None:
    """Mean k of the oscillators while they solve; None for a model that has none."""
    sheet = drawn(PUZZLES[job.puzzle], "test", job.seed, 0, _AT_A_TIME, LENGTH)
    return float(model(sheet.tokens_BS).coupling_L.mean()) if isinstance(model, LanguageModel) else None


def solved(job: Job) -> dict[str, Any]:
    """Train and test; what came of it."""
    began = time.process_time()
    model = made(job.solver, PUZZLES[job.puzzle], job.seed)
    losses = train(model, job)
    shares = {str(length): test(model, job, length) for length in LENGTHS}
    return {
        "facts": job.facts(),
        "parameters": sum(value.numel() for name, value in model.named_parameters() if "positions" not in name),
        "all": {length: share for length, (share, _) in shares.items()},
        "late": {length: share for length, (_, share) in shares.items()},
        "coupling": coupling(model, job),
        "losses": losses,
        "cpu_s": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and test one solver of one puzzle.")
    parser.add_argument("job", choices=[job.name for job in JOBS], metavar="JOB", help="see benchmarks/solvers.py")
    parser.add_argument("--into", type=Path, required=True)
    said = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what a faithful oscillator forgets last is denormal, and twenty times slower
    found = solved(next(job for job in JOBS if job.name == said.job))
    with replacing(said.into) as file:
        file.write((json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
