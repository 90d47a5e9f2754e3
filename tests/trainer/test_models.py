"""The models against the plain formulas, and the known facts about them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kssm.config import ModelConfig, TrainConfig, model_config
from kssm.errors import BadUsage
from kssm.feedforward import FFN
from kssm.model_blocks import KSSM
from kssm.model_v3 import regulariser
from kssm.models import build
from kssm.objective import Objective, objective
from kssm.tied import TiedWeight
from tests.trainer import oracle

B, S, N, H, D, V, L = 2, 4, 5, 3, 6, 11, 2
TRAIN = TrainConfig(batch_size=B, gradient_accumulation=1, seq_length=S, max_steps=10, warmup_steps=1, lr=1e-3)


def config(name: str, **changes: object) -> ModelConfig:
    facts = {"hidden": D, "layers": L, "oscillators": N, "harmonics": H, "positions": 8, **changes}
    return model_config(name, "tiny", V, **facts)  # type: ignore[arg-type]


def model_in_float64(name: str, **changes: object) -> KSSM:
    """Parameters away from their initial symmetries, so that every one of them matters."""
    model = build(config(name, **changes), seed=3).double()
    shake = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=shake, dtype=torch.float64)
    return model


def rows(seed: int = 5, length: int = S + 1) -> Tensor:
    return torch.randint(V, (B, length), generator=torch.Generator().manual_seed(seed))


def compare(model: KSSM, ours: Objective, plain: oracle.Result, plain_loss: Tensor) -> None:
    torch.testing.assert_close(model.logits(ours.features.hidden_BSD), plain.logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.loss, plain_loss, atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.features.order_parameter_L, plain.R.detach().mean((1, 2)), atol=1e-10, rtol=0)
    std = plain.R.detach().mean(0).std(correction=0)
    torch.testing.assert_close(ours.features.order_parameter_std, std, atol=1e-10, rtol=0)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(plain_loss, parameters, allow_unused=True, materialize_grads=True)
    actual = torch.autograd.grad(ours.loss, parameters, allow_unused=True, materialize_grads=True)
    for (name, _), a, e in zip(model.named_parameters(), actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("bistable", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_v3_and_all_its_gradients_follow_the_formulas(noisy: bool, bistable: bool) -> None:
    model, tokens = model_in_float64("v3", bistable=bistable), rows()
    eps = torch.Generator().manual_seed(9)
    eps_LBSN = torch.stack([torch.randn(B, S, N, generator=eps, dtype=torch.float64) for _ in range(L)])
    ours = objective(model, tokens, torch.Generator().manual_seed(9) if noisy else None, TRAIN)
    p = dict(model.named_parameters())
    plain = oracle.v3(p, tokens[:, :-1], L, H, eps_LBSN if noisy else None, bistable)
    ce = oracle.cross_entropy(plain.logits, tokens[:, 1:])
    compare(model, ours, plain, ce + TRAIN.lambda_reg * oracle.regulariser(plain, TRAIN.lambda1, TRAIN.lambda2))
    torch.testing.assert_close(ours.features.u_L, plain.u.mean((1, 2)), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.features.determinant_L, plain.determinant.abs().mean((1, 2)), atol=1e-10, rtol=0)


def masks(p: float, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.empty(B, S, D, dtype=torch.float64).bernoulli_(1 - p, generator=generator) / (1 - p)


@pytest.mark.parametrize("noisy", [True, False])
def test_v2_and_all_its_gradients_follow_the_formulas(noisy: bool) -> None:
    model, tokens = model_in_float64("v2", dropout=0.4), rows()
    places = ["embedding", *(f"{layer}.{part}" for layer in range(L) for part in ("bank", "ffn"))]
    mask = dict(zip(places, masks(0.4, seed=9), strict=False))
    ours = objective(model, tokens, torch.Generator().manual_seed(9) if noisy else None, TRAIN)
    drop = (lambda place, b, s, x: x * mask[place][b, s]) if noisy else None
    plain = oracle.v2(dict(model.named_parameters()), tokens[:, :-1], L, drop)
    compare(model, ours, plain, oracle.cross_entropy(plain.logits, tokens[:, 1:]))
    assert ours.reg == 0
    assert ours.features.u_L is None


def tied_loss(weight: torch.Tensor, shift: torch.Tensor, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A pass as short as can be: rows of the matrix, shifted, against the matrix."""
    tied = TiedWeight(weight)
    return tied.cross_entropy(tied.lookup(tokens) + shift, target)


def test_the_chunked_cross_entropy_and_its_gradients_are_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kssm.tied._CHUNK_TOKENS_MIN", 3)
    monkeypatch.setattr("kssm.tied._CHUNK_CPU", 1)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(10, D, dtype=torch.float64, requires_grad=True)
    tokens, target = torch.randint(V, (10,)), torch.randint(V, (10,))
    usual = torch.nn.functional.cross_entropy((weight[tokens] + shift) @ weight.T, target)
    ours = tied_loss(weight, shift, tokens, target)
    torch.testing.assert_close(ours, usual, atol=1e-12, rtol=0)
    for mine, theirs in zip(*(torch.autograd.grad(3 * loss, (weight, shift)) for loss in (ours, usual)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_the_gradients_of_one_loss_are_not_taken_twice() -> None:
    weight = torch.randn(V, D, requires_grad=True)
    loss = tied_loss(weight, torch.zeros(10, D), torch.randint(V, (10,)), torch.randint(V, (10,)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already taken"):
        loss.backward()


def test_the_tied_gradients_of_two_passes_add_up() -> None:
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    tokens, target = torch.randint(V, (2, 10)), torch.randint(V, (2, 10))
    shift = torch.zeros(10, D, dtype=torch.float64)
    alone = [torch.autograd.grad(tied_loss(weight, shift, tokens[i], target[i]), weight)[0] for i in range(2)]
    for i in range(2):
        (tied_loss(weight, shift, tokens[i], target[i]) * 0.5).backward()
    torch.testing.assert_close(weight.grad, 0.5 * (alone[0] + alone[1]), atol=1e-12, rtol=0)


def test_an_embedding_without_a_head_has_its_gradient_too() -> None:
    weight = torch.randn(V, D, requires_grad=True)
    TiedWeight(weight).lookup(torch.tensor([[1, 1, 3]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.sum(1).nonzero().flatten().tolist() == [1, 3]
    assert weight.grad[1].tolist() == [2] * D


def test_a_loss_of_hundreds_of_nats_is_still_told() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [900.0]])
    assert TiedWeight(weight).cross_entropy(hidden, torch.tensor([0])).item() == 900


def test_a_token_that_is_all_but_certain_still_has_its_gradient() -> None:
    weight = torch.tensor([[0.0], [12.0]], dtype=torch.float64)
    shift = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    tied_loss(weight, shift, torch.tensor([0]), torch.tensor([1])).backward()
    assert shift.grad is not None
    assert shift.grad.item() == pytest.approx(-12 / (1 + math.exp(12)), rel=1e-9)


@pytest.mark.parametrize("frugal", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_the_feed_forward_part_and_its_gradients_are_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch, tokens: int, frugal: bool
) -> None:
    monkeypatch.setattr("kssm.feedforward._CHUNK_CPU", 3)
    ffn = FFN(D, frugal=frugal).double()
    x = torch.randn(1, tokens, D, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    values = (x, *ffn.parameters())
    expected = ffn.contract(torch.nn.functional.gelu(ffn.expand(x)))
    torch.testing.assert_close(ffn(x), expected, atol=1e-12, rtol=0)
    ours, usual = (torch.autograd.grad(y, values, direction) for y in (ffn(x), expected))
    for mine, theirs in zip(ours, usual, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_editing_earlier_tokens_changes_a_later_logit_by_exactly_nothing(name: str) -> None:
    model = build(config(name), seed=0)
    before = rows(length=S)
    after = before.clone()
    after[:, :-1] = (after[:, :-1] + 1) % V
    last = [model.logits(model(tokens, None).hidden_BSD)[:, -1] for tokens in (before, after)]
    assert (last[0] - last[1]).abs().max() == 0


def test_the_parameters_i_and_j_get_no_gradient() -> None:
    model = model_in_float64("v3")
    objective(model, rows(), torch.Generator(), TRAIN).loss.backward()
    for block in model.blocks:
        gradient = block.bank.system.weight.grad
        assert (gradient[8:] == 0).all()
        assert (gradient[:8] != 0).any(dim=1).all()


def test_medium_v3_has_46_2_million_parameters() -> None:
    with torch.device("meta"):
        model = build(model_config("v3", "medium", 100_277), seed=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1) == 46.2


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_the_first_loss_is_near_ln_V_and_far_above_it_with_the_published_embedding(name: str) -> None:
    vocabulary = 2048
    tokens = torch.randint(vocabulary, (4, 65), generator=torch.Generator().manual_seed(0))
    first = {
        published: objective(build(model_config(name, "tiny", vocabulary, published=published), 0), tokens, None, TRAIN)
        for published in (False, True)
    }
    assert first[False].ce.item() == pytest.approx(math.log(vocabulary), abs=0.1)
    assert first[True].ce.item() > 3 * math.log(vocabulary)


def test_evaluating_twice_agrees_to_the_bit_but_not_as_published() -> None:
    for published in (False, True):
        model, tokens = build(config("v3", published=published), seed=0), rows(length=S)
        noise = model.evaluation_noise(seed=0)
        one, two = (model.logits(model(tokens, noise).hidden_BSD) for _ in range(2))
        assert torch.equal(one, two) != published


def test_v2_as_published_evaluates_without_dropout() -> None:
    assert build(config("v2", published=True), seed=0).evaluation_noise(seed=0) is None


def test_initial_values_follow_the_seed_and_leave_global_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(config("v3"), seed=7).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    same, other = build(config("v3"), seed=7).state_dict(), build(config("v3"), seed=8).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


def test_v3_starts_from_the_published_values() -> None:
    bank = build(config("v3"), seed=0).blocks[0].bank
    torch.testing.assert_close(bank.system.weight.T @ bank.system.weight, torch.eye(D), atol=1e-5, rtol=0)
    assert (bank.system.bias == 0.5).all()
    assert bank.delta.item() == pytest.approx(0.2)
    assert bank.omega.tolist() == pytest.approx(torch.linspace(-math.pi, math.pi, N).tolist())


@pytest.mark.parametrize(("name", "bank"), [
    ("v2", ["omega", "phases.weight", "phases.bias", "coupling.weight", "coupling.bias"]),
    ("v3", ["omega", "delta", "system.weight", "system.bias"]),
])  # fmt: skip
def test_the_names_in_a_checkpoint_stay(name: str, bank: list[str]) -> None:
    block = [
        *(f"{part}.{leaf}" for part in ("bank_norm", "readout", "ffn_norm", "ffn.expand", "ffn.contract")
          for leaf in ("weight", "bias")),
        *(f"bank.{leaf}" for leaf in bank),
    ]  # fmt: skip
    names = {"embedding.weight", "positions.weight", "norm.weight", "norm.bias"}
    names |= {f"blocks.{layer}.{leaf}" for layer in range(L) for leaf in block}
    assert set(build(config(name), seed=0).state_dict()) == names


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_noise_makes_two_passes_differ_and_its_seed_makes_them_agree(name: str) -> None:
    model, tokens = build(config(name, **({} if name == "v3" else {"dropout": 0.4})), seed=0), rows(length=S)
    one, same, other = (model(tokens, torch.Generator().manual_seed(seed)).hidden_BSD for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_oscillators_stay_in_float32_under_autocast() -> None:
    model, tokens = build(config("v3"), seed=0), rows(length=S)
    seen: list[torch.dtype] = []
    model.blocks[1].bank.register_forward_hook(lambda _module, _args, out: seen.append(out.values_BSF.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = model(tokens, None)
    assert seen == [torch.float32]
    torch.testing.assert_close(features.order_parameter_L, model(tokens, None).order_parameter_L, atol=5e-3, rtol=0)


def test_the_loss_under_bfloat16_is_near_that_in_float32() -> None:
    model = build(config("v3"), seed=0)
    exact = objective(model, rows(), None, TRAIN).ce
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(model, rows(), None, TRAIN).ce
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), abs=0.02)
    assert model.embedding.weight.grad.dtype == torch.float32


def test_the_regulariser_rewards_a_large_u_below_zero() -> None:
    features = build(config("v3"), seed=0)(rows(length=S), None)
    large = features._replace(u_L=torch.tensor([5.0, 5.0]), determinant_L=torch.tensor([1e6, 1e6]))
    assert regulariser(large, 0.1, 0.5).item() == pytest.approx(-0.5 * math.log(5), abs=1e-6)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(BadUsage, match="9 tokens in a row, but the model has 8 positions"):
        build(config("v3"), seed=0)(torch.zeros(1, 9, dtype=torch.long), None)
