"""K-SSM v2: phases projected from the hidden state, coupled through a learned K.

Source: the published trainer `train_kssm_v2_efficient`; symbols in `kssm.oscillators`.

Departures: the unused R aggregator and `forced_R`, which scaled a state right before its LayerNorm and so changed
nothing, are left out. The embedding's initial values are `kssm.model_blocks.KSSM`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.model_blocks import KSSM, Bank, Readings, natural_phases
from kssm.oscillators import magnitude, mean_field_step


class ProjectedBank(Bank):
    """`theta = omega + W_f x + b_f`, `K = 2 sigmoid(w_k.x + b_k)`, one mean-field step, readings [sin; cos].

    The published bank reads out `x + W_o [sin theta; cos theta] + b_o`; W_o is the block's readout.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.readings = 2 * config.oscillators
        self.omega = natural_phases(config.oscillators)
        self.phases = nn.Linear(config.hidden, config.oscillators)
        self.coupling = nn.Linear(config.hidden, 1)

    def forward(self, x_BSD: Tensor, noise: torch.Generator | None) -> Readings:  # noqa: ARG002 - v2 spreads no phase
        """[B, S, D] -> [B, S, 2N]."""
        theta_BSN = self.omega + self.phases(x_BSD)  # [N] + [B, S, N]
        K_BS1 = 2 * torch.sigmoid(self.coupling(x_BSD))  # [B, S, 1]
        if self.intervention is None:
            theta_BSN = mean_field_step(theta_BSN, K_BS1)
        else:
            theta_BSN = self.intervention.phases(mean_field_step(theta_BSN, self.intervention.coupling(K_BS1)))
        sin, cos = theta_BSN.sin(), theta_BSN.cos()  # [B, S, N]
        R_BS = magnitude(cos.detach().mean(-1), sin.detach().mean(-1))
        return Readings(torch.cat((sin, cos), dim=-1), R_BS)


class KSSMv2(KSSM):
    """The v2 model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, ProjectedBank)
