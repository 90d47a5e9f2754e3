"""Text from a model, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kssm.errors import BadUsage, Stopped
from kssm.language_model import Features, LanguageModel, State

_COLDEST = 1e-30
"""Below this temperature logits over it could be infinite, and the likeliest token is the only one anyway."""


def sample(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Continue a prompt; the global random state and the model stay as they are.

    Args:
        model: on any device.
        prompt_ids: one token id or more. A model that remembers reads each token once, at a cost that does not grow
            with the text; another reads the last `positions` tokens anew for each one it draws.
        count: how many tokens to draw.
        temperature: divides the logits; 0, and what is as good as that, takes the likeliest token.
        top_k: draw among the k likeliest; None draws among all.
        seed: of the draws, which are the same on every device for the same logits.
        should_stop: asked before each token.

    Returns:
        The drawn ids, without the prompt.

    Raises:
        BadUsage: an empty prompt, an id outside the vocabulary, a temperature that is negative or not finite, a top_k
            below 1, a seed of more than 63 bits.
        Stopped: should_stop said so.
    """
    _require_usable(prompt_ids, model.config.vocabulary, temperature, top_k)
    if not 0 <= seed < 2**63:
        raise BadUsage(f"seed is {seed}; it lies in [0, 2^63)", "use 0 or more")
    draws = torch.Generator().manual_seed(seed)
    noise = model.evaluation_noise(seed)
    ids, state = list(prompt_ids), None
    unread = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            if should_stop():
                raise Stopped
            features = _read(model, ids[-(unread if model.remembers else model.config.positions) :], noise, state)
            state, unread = features.state, 1
            ids.append(_draw(model.logits(features.hidden_BSD[:, -1]).squeeze(0), temperature, top_k, draws))
    return ids[len(prompt_ids) :]


def _read(model: LanguageModel, ids: list[int], noise: torch.Generator | None, state: State | None) -> Features:
    """What one row of tokens does to a model."""
    features: Features = model(torch.tensor([ids], device=model.embedding.weight.device), noise, state)
    return features


def _draw(logits_V: Tensor, temperature: float, top_k: int | None, draws: torch.Generator) -> int:
    logits_V = logits_V.float().cpu()
    if temperature < _COLDEST:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        smallest_kept = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest_kept, -torch.inf)
    probabilities_V = (logits_V / temperature).softmax(-1)
    return int(torch.multinomial(probabilities_V, 1, generator=draws))


def _require_usable(prompt_ids: Sequence[int], V: int, temperature: float, top_k: int | None) -> None:
    if not prompt_ids:
        raise BadUsage("the prompt has no token to continue", "give a prompt of one token or more")
    if not all(0 <= token < V for token in prompt_ids):
        raise BadUsage(f"the prompt has a token outside the vocabulary of {V}", "use the model's own tokenizer")
    if not 0 <= temperature < math.inf:  # a NaN is neither
        raise BadUsage(f"temperature is {temperature}; it divides the logits", "use 0 or more")
    if top_k is not None and top_k < 1:
        raise BadUsage(f"top_k is {top_k}; a token must remain to be drawn", "use 1 or more, or leave it out")
