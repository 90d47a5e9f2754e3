"""K-SSM v3: a bistable bank, whose ten parameters per token set the coupling of its oscillators.

Source: the published trainer `train_kssm_v3`; symbols in `kssm.oscillators`. The ten parameters are those of

    a x^2 + b y + c z = d,    e x^2 + f y + g z = t,    i x^2 + j y + z = 0,    u = x^2,

    u = (d g - c t) / (a g - c e + 1e-6),    Delta = b g - c f.

The reduced solution leaves i and j out, so their rows of W_p never get a gradient. A bank learns two numbers of a
token, the mean of its normed state and K(u).

Departures: noise in training only, from the run's own generator; the published form drew it in evaluation too, and
`config.published` restores that (`KSSM.evaluation_noise`). The embedding's initial values are
`kssm.model_blocks.KSSM`'s. `config.bistable` False is the published monostable ablation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kssm.config import ModelConfig
from kssm.language_model import Features
from kssm.model_blocks import KSSM, Bank, Readings, natural_phases
from kssm.oscillators import mean_field_pull
from kssm.readout import order_parameters

U_CLAMP = (0.1, 10.0)
_PARAMETERS = 10


class BistableBank(Bank):
    """One mean-field step with K(u), spread by noise, then the order parameters of H harmonics as readings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.harmonics = config.harmonics
        self.bistable = config.bistable
        self.readings = 3 * config.harmonics
        self.omega = natural_phases(config.oscillators)
        self.delta = nn.Parameter(torch.tensor(0.2))
        self.system = nn.Linear(config.hidden, _PARAMETERS)
        nn.init.orthogonal_(self.system.weight)
        nn.init.constant_(self.system.bias, 0.5)

    def forward(self, x_BSD: Tensor, noise: torch.Generator | None) -> Readings:
        """[B, S, D] -> [B, S, 3H]: Re Z_1..Z_H, Im Z_1..Z_H, |Z_1|..|Z_H|."""
        u_BS1, determinant_BS1 = self._reduced_solution(x_BSD)
        K_BS1 = 2 * torch.sigmoid(u_BS1)
        if self.intervention is not None:
            K_BS1 = self.intervention.coupling(K_BS1)
        # theta_j = omega_j + mean(x) turns the bank as a whole, which the pull does not feel: it is omega's, [N].
        pull_N = mean_field_pull(self.omega)
        theta_BSN = (self.omega + x_BSD.mean(-1, keepdim=True)).addcmul(K_BS1, pull_N)
        if noise is not None:
            eps = torch.randn(theta_BSN.shape, generator=noise, device=x_BSD.device, dtype=x_BSD.dtype)
            theta_BSN = theta_BSN - (self.delta.abs() + 1e-5) * eps
        if self.intervention is not None:
            theta_BSN = self.intervention.phases(theta_BSN)
        readings_BSF = order_parameters(theta_BSN, self.harmonics)
        R_BS = readings_BSF[..., 2 * self.harmonics]  # |Z_1|
        return Readings(readings_BSF, R_BS, u_BS1.mean(), determinant_BS1.abs().mean())

    def _reduced_solution(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """U and Delta at each token, [B, S, 1] each."""
        a, b, c, d, e, f, g, t, _, _ = self.system(x_BSD).split(1, dim=-1)  # [B, S, 10] -> ten of [B, S, 1]
        u = (d * g - c * t) / (a * g - c * e + 1e-6)
        return u.clamp(*U_CLAMP) if self.bistable else u, b * g - c * f


class KSSMv3(KSSM):
    """The v3 model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, BistableBank)


def regulariser(features: Features, lambda1: float, lambda2: float) -> Tensor:
    """`lambda1 / (mean|Delta| + 1e-5) - lambda2 log max(mean u, 1e-5)`, mean over the layers; 0 for the other models.

    It keeps the system solvable and u off its lower clamp; below zero, where u is large, is no error.

    Args:
        features: of the batch.
        lambda1: weight of the determinant's part.
        lambda2: weight of log u's part.

    Returns:
        A scalar.
    """
    if features.u_L is None or features.determinant_L is None:
        return features.hidden_BSD.new_zeros(())
    solvable_L = lambda1 / (features.determinant_L + 1e-5)
    alive_L = -lambda2 * features.u_L.clamp_min(1e-5).log()
    return (solvable_L + alive_L).mean()
