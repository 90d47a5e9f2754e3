"""The state that goes from step to step where each row of a batch continues the one before it (`--carry-state`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kssm.errors import CheckpointError
from kssm.language_model import LanguageModel, State

_PREFIX = "carried."
_NUMBERS = re.compile(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})")
_ANOTHER = "use another checkpoint, or --fresh to archive it and start anew"


class Carried:
    """Where each row of the batch has left the model.

    Args:
        begins: whether the rows of a step begin anew instead of going on from those of the step before.
    """

    def __init__(self, begins: Callable[[int], bool]) -> None:
        self._begins = begins
        self._state: State | None = None
        self._anew = False
        self._made: list[State] = []

    def open(self, step: int) -> None:
        """A step begins, or begins again: what an attempt at it has made is forgotten."""
        self._made = []
        # The state itself stays until the step has happened: a stop within the step saves where the one before left it.
        self._anew = self._begins(step)

    def before(self, first: int, count: int) -> State | None:
        """Where some rows of the batch go on; None where they begin a text."""
        if self._state is None or self._anew:
            return None
        return tuple(tuple(tensor[first : first + count] for tensor in block) for block in self._state)

    def after(self, state: State | None) -> None:
        """Where the next rows of the batch were left."""
        self._made.append(state or ())

    def close(self) -> None:
        """The step has happened: the next one goes on from here."""
        blocks = zip(*self._made, strict=True)
        self._state = tuple(
            tuple(torch.cat(rows).detach().clone() for rows in zip(*parts, strict=True)) for parts in blocks
        )
        self._made = []

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot; they are never written to again."""
        blocks = enumerate(self._state or ())
        return {f"{_PREFIX}{block}.{n}": tensor for block, left in blocks for n, tensor in enumerate(left)}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device, step: int = -1) -> None:
        """Go on where a snapshot was made.

        Args:
            tensors: of the snapshot.
            device: where the state shall be.
            step: the next one; a snapshot without a state is enough where the rows begin anew.

        Raises:
            CheckpointError: it has no such state.
        """
        saved: dict[int, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_PREFIX):
                place = _NUMBERS.fullmatch(name.removeprefix(_PREFIX))
                if place is None:
                    raise CheckpointError(f"the checkpoint's {name} is no part of a carried state", _ANOTHER)
                block, n = map(int, place.groups())
                saved.setdefault(block, {})[n] = tensor.to(device, copy=True)
        if not saved and step >= 0 and self._begins(step):  # saved so by an earlier version, after a stop
            return
        if not saved:
            raise CheckpointError("the checkpoint has no carried state", "use --fresh to archive it and start anew")
        if any(sorted(inside) != list(range(len(inside))) for inside in (list(saved), *map(list, saved.values()))):
            raise CheckpointError("a part of the checkpoint's carried state is missing", _ANOTHER)
        self._state = tuple(tuple(saved[block][n] for n in sorted(saved[block])) for block in sorted(saved))

    def require_fit(self, model: LanguageModel, rows: int) -> None:
        """Raise CheckpointError unless a restored state has the form of one that the model makes itself.

        A kernel reads where it is told: one of another size would have it read beyond the end.

        Args:
            model: on the state's device.
            rows: sequences per optimizer step.
        """
        if self._state is None:
            return
        with torch.no_grad():
            fresh = model(torch.zeros(rows, 1, dtype=torch.long, device=model.embedding.weight.device)).state
        if fresh is None or _form(self._state) != _form(fresh):
            raise CheckpointError("the checkpoint's carried state is not of this model's form", _ANOTHER)


def _form(state: State) -> list[list[tuple[int, ...]]]:
    """Sizes of all parts; how many tokens attention has seen, the third of its four axes, may be any number."""
    return [
        [(*part.shape[:2], *part.shape[3:]) if part.dim() == 4 else tuple(part.shape) for part in block]
        for block in state
    ]
