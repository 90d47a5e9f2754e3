"""A GPT in plain PyTorch, the yardstick of the language models: pre-norm, causal attention, GELU, tied head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a GPT.

    Args:
        vocabulary: V.
        hidden: D.
        layers: L.
        heads: of attention; divides D.
        positions: learned ones, the longest text.
        dropout: after the embedding and after both halves of each block, in training.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    positions: int
    dropout: float = 0.0


class Block(nn.Module):
    """`h <- h + Attention(LN h)`, `h <- h + W_2 GELU(W_1 LN h)`, no biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D = shape.hidden
        self.heads = shape.heads
        self.drop = nn.Dropout(shape.dropout)
        self.attention_norm = nn.LayerNorm(D, bias=False)
        self.project = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.ffn_norm = nn.LayerNorm(D, bias=False)
        self.expand = nn.Linear(D, 4 * D, bias=False)
        self.contract = nn.Linear(4 * D, D, bias=False)

    def forward(self, h_BSD: Tensor) -> Tensor:
        B, S, D = h_BSD.shape
        parts = self.project(self.attention_norm(h_BSD)).view(B, S, 3, self.heads, D // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h_BSD = h_BSD + self.drop(self.out(mixed.transpose(1, 2).reshape(B, S, D)))
        return h_BSD + self.drop(self.contract(F.gelu(self.expand(self.ffn_norm(h_BSD)))))


class GPT(nn.Module):
    """Token ids [B, S] to logits [B, S, V]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.positions, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden, bias=False)
        self.drop = nn.Dropout(shape.dropout)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if residual else 0.02)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        h_BSD = self.drop(self.embedding(tokens_BS) + self.positions.weight[: tokens_BS.shape[1]])
        for block in self.blocks:
            h_BSD = block(h_BSD)
        return F.linear(self.norm(h_BSD), self.embedding.weight)
