"""What the benchmarks compare with computes the same model: same parameters, same noise, same numbers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.plain_v3 import PlainV3
from kssm.config import model_config, train_config
from kssm.models import build
from kssm.objective import objective

V, D, L, N, H = 300, 24, 2, 12, 6


@pytest.mark.parametrize("noisy", [False, True])
def test_the_plain_model_is_equal_to_ours_in_every_number(noisy: bool) -> None:
    config = model_config("v3", "tiny", V, hidden=D, layers=L, oscillators=N, harmonics=H)
    ours, plain = build(config, seed=3), PlainV3(V, D, L, N, H)
    plain.load_state_dict(ours.state_dict())
    rows = torch.randint(V, (3, 18), generator=torch.Generator().manual_seed(0))
    noise = (torch.Generator().manual_seed(5) if noisy else None, torch.Generator().manual_seed(5) if noisy else None)
    training = train_config("v3", "tiny")
    told = objective(ours, rows, noise[0], training)
    loss, ce, R = plain.loss(rows, noise[1], (training.lambda_reg, training.lambda1, training.lambda2))
    told.loss.backward()
    loss.backward()
    for mine, theirs in ((told.loss, loss), (told.ce, ce), (told.features.order_parameter_L.mean(), R)):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-6)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        if not noisy and name.endswith("delta"):  # the spread that is not drawn
            assert parameter.grad is gradients[name] is None
            continue
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name], atol=3e-5, rtol=3e-4)
