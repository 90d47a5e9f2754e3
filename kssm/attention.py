"""Causal self-attention, the layer that a hybrid of oscillators and attention has in every n-th block.

    q, k, v = W_p x,    y_t = W_o sum_{t - reach < s <= t} softmax_s(q_t k_s / sqrt(32)) v_s        heads of 32

No biases and no positions: the oscillators before it tell where a token stands. A token sees the `REACH` tokens up to
itself, so that the state, their keys and values, stays as small as that. Source: Vaswani et al. (2017); Mistral
(2023) for the sliding window. Suffixes: T tokens in the state, K heads, C = 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

HEAD = 32
REACH = 1024


class CausalAttention(nn.Module):
    """[B, S, D] to [B, S, D].

    Args:
        D: width, a multiple of 32.
    """

    def __init__(self, D: int) -> None:
        super().__init__()
        self.project = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x_BSD: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, S, D] to [B, S, D] and the state after it; the state before is empty at the beginning of a text."""
        q_BKSC, k_BKSC, v_BKSC = self.project(x_BSD).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        k_BKTC, v_BKTC = (torch.cat(pair, 2) for pair in zip(state, (k_BKSC, v_BKSC), strict=True)) if state else (
            k_BKSC, v_BKSC)  # fmt: skip
        mask_ST = _sees(x_BSD.shape[1], k_BKTC.shape[2], x_BSD.device)
        y_BKSC = F.scaled_dot_product_attention(q_BKSC, k_BKTC, v_BKTC, attn_mask=mask_ST, is_causal=mask_ST is None)
        after = tuple(part[:, :, -(REACH - 1) :].detach() for part in (k_BKTC, v_BKTC))
        return self.out(y_BKSC.transpose(1, 2).flatten(2)), after


def _sees(S: int, T: int, device: torch.device) -> Tensor | None:
    """Which of T tokens each of the last S sees; None where that is all before it."""
    if S == T <= REACH:
        return None
    distance_ST = torch.arange(T - S, T, device=device)[:, None] - torch.arange(T, device=device)
    return (distance_ST >= 0) & (distance_ST < REACH)
