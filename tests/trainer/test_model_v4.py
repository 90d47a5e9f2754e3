"""v4: its shape, what it may see, and the state that is all it needs to know of a text."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from kssm import convolution, model_v4, scan
from kssm.attention import CausalAttention
from kssm.config import ModelConfig, TrainConfig, model_config
from kssm.convolution import PortableConvolution
from kssm.language_model import Features, LanguageModel, State
from kssm.model_v4 import Mix
from kssm.models import build
from kssm.objective import objective
from kssm.sample import sample
from kssm.scan_loop import LoopScan

V, B, S = 13, 2, 40
TRAIN = TrainConfig(batch_size=B, gradient_accumulation=1, seq_length=S, max_steps=10, warmup_steps=1, lr=1e-3)
KINDS: dict[str, dict[str, object]] = {
    "v4": {}, "uncoupled": {"coupled": False}, "unrotated": {"rotating": False},
    "hybrid": {"attention_every": 2, "hidden": 32},
}  # fmt: skip


def model_of(kind: str = "v4", **changes: object) -> LanguageModel:
    """Parameters away from their initial symmetries, so that every one of them matters."""
    facts = {"hidden": 16, "layers": 3, "oscillators": 8, "group": 4, **KINDS[kind], **changes}
    model = build(model_config("v4", "tiny", V, **facts), seed=3)  # type: ignore[arg-type]
    shake = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=shake)
    return model


def text(length: int = S, rows: int = B) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def read(model: LanguageModel, tokens_BS: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    features: Features = model(tokens_BS, None, state)
    assert features.state is not None
    return model.logits(features.hidden_BSD), features.state


def in_parts(model: LanguageModel, tokens_BS: Tensor, *cuts: int) -> tuple[Tensor, State]:
    """The logits of a text that is read part by part, and the state after it."""
    state: State | None = None
    parts = []
    for first, end in itertools.pairwise((0, *cuts, tokens_BS.shape[1])):
        logits, state = read(model, tokens_BS[:, first:end], state)
        parts.append(logits)
    assert state is not None
    return torch.cat(parts, 1), state


def flat(state: State) -> list[Tensor]:
    return [tensor for block in state for tensor in block]


def counted(config: ModelConfig) -> int:
    """Embedding and final norm; per block a norm, the mix with its own norm, or attention; the FFN."""
    D, N, L = config.hidden, config.oscillators, config.layers
    attending = L // config.attention_every if config.attention_every else 0
    mix = 4 * D + D * (6 * N + N // config.group) + N + N + 2 * N + 2 * N + 2 * N * D
    return config.vocabulary * D + D + (L - attending) * mix + attending * 4 * D * D + L * (D + 8 * D * D)


@pytest.mark.parametrize(("size", "changes"), [
    ("tiny", {}), ("small", {}), ("medium", {}), ("large", {}), ("small", {"attention_every": 2}),
    ("tiny", {"attention_every": 3}),
])  # fmt: skip
def test_a_preset_has_the_parameters_that_its_equations_say(size: str, changes: dict[str, int]) -> None:
    config = model_config("v4", size, 8192, **changes)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = build(config, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == counted(config)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_become_hidden_states_and_a_state_of_one_size_per_row(kind: str) -> None:
    model = model_of(kind)
    features = model(text())
    D = model.config.hidden
    assert features.hidden_BSD.shape == (B, S, D)
    assert features.u_L is None
    assert not any(tensor.requires_grad for tensor in flat(features.state))
    banks = sum(isinstance(module, Mix) for module in model.modules())
    assert features.order_parameter_L.shape == features.coupling_L.shape == (banks,)
    shapes = [[tuple(tensor.shape) for tensor in block] for block in features.state]
    assert shapes[0] == [(B, 16), (B, 3, D)]


@pytest.mark.parametrize("kind", KINDS)
def test_editing_later_tokens_changes_earlier_logits_by_exactly_nothing(kind: str) -> None:
    model, before = model_of(kind), text()
    for place in (0, 1, 17, S - 1):
        after = before.clone()
        after[:, place:] = (after[:, place:] + 1) % V
        one, other = read(model, before)[0], read(model, after)[0]
        if place:
            assert (one[:, :place] - other[:, :place]).abs().max() == 0
        assert (one[:, place:] - other[:, place:]).abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_early_token_is_heard_at_the_end(kind: str) -> None:
    model, before = model_of(kind), text()
    after = before.clone()
    after[:, 0] = (after[:, 0] + 1) % V
    assert (read(model, before)[0][:, -1] - read(model, after)[0][:, -1]).abs().max() > 0


@pytest.fixture
def _row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arithmetic that does not round otherwise for another number of tokens, as matrix products of BLAS may.

    Nor do vectors of 32 numbers leave a rest, for which torch's exponentials have another form.
    """

    def product(x: Tensor, W_OI: Tensor, b: Tensor | None = None) -> Tensor:
        assert b is None
        return (x[..., None, :] * W_OI).sum(-1)

    def mm(x: Tensor, W_IO: Tensor, out: Tensor | None = None) -> Tensor:
        y = product(x, W_IO.T)
        return y if out is None else out.copy_(y)

    monkeypatch.setattr(F, "linear", product)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(scan, "chosen", lambda _device: LoopScan())
    monkeypatch.setattr(convolution, "_on_cpu", PortableConvolution)


@pytest.mark.usefixtures("_row_by_row")
@pytest.mark.parametrize("kind", ["v4", "uncoupled", "unrotated"])
@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (20,), (S - 1,), (5, 6, 30), tuple(range(1, S))])
def test_a_text_in_parts_has_the_very_bits_of_the_whole(kind: str, cuts: tuple[int, ...]) -> None:
    model = model_of(kind, hidden=32, oscillators=32, group=2)
    whole, end = read(model, text())
    parts, there = in_parts(model, text(), *cuts)
    assert (parts - whole).abs().max() == 0
    assert all(torch.equal(one, other) for one, other in zip(flat(end), flat(there), strict=True))
    prefix, _ = read(model, text()[:, : cuts[0]])
    assert (prefix - whole[:, : cuts[0]]).abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(1,), (3,), (20,), (S - 1,), tuple(range(1, S))])
def test_with_products_that_round_by_their_shape_parts_stay_within_rounding(kind: str, cuts: tuple[int, ...]) -> None:
    model = model_of(kind)
    whole, end = read(model, text())
    parts, there = in_parts(model, text(), *cuts)
    assert (parts - whole).abs().max() < 1e-5 * whole.abs().max()
    for one, other in zip(flat(end), flat(there), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_another_state_is_another_text() -> None:
    model = model_of()
    _, one = read(model, text())
    _, other = read(model, (text() + 1) % V)
    after = [read(model, text(), state)[0] for state in (None, one, other)]
    assert (after[0] - after[1]).abs().max() > 1e-3
    assert (after[1] - after[2]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_its_own_state(kind: str) -> None:
    model = model_of(kind)
    _, state = read(model, text(rows=3))
    swapped = tuple(tuple(tensor.flip(0) for tensor in block) for block in state)
    more = text(7, rows=3)
    straight, turned = read(model, more, state)[0], read(model, more.flip(0), swapped)[0]
    torch.testing.assert_close(turned.flip(0), straight, atol=1e-5, rtol=1e-5)


class Reads:
    """Counts the tokens that a model reads, pass by pass."""

    def __init__(self, model: LanguageModel) -> None:
        self.each: list[int] = []
        model.register_forward_pre_hook(lambda _model, args: self.each.append(args[0].shape[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_text_is_that_of_reading_all_of_it_anew_for_each_token(kind: str) -> None:
    model, prompt = model_of(kind), text(9)[0].tolist()
    with torch.no_grad():
        model.norm.weight.neg_()  # type: ignore[union-attr,operator] # a tied head likes the token that it has just read
    streamed = sample(model, prompt, 60, temperature=0)
    ids = list(prompt)
    for _ in range(60):
        logits, _ = read(model, torch.tensor([ids]))
        ids.append(int(logits[0, -1].argmax()))
    assert streamed == ids[9:]
    assert len(set(streamed)) > 2


def test_a_streamed_token_costs_one_token_however_long_the_text() -> None:
    model = model_of()
    reads = Reads(model)
    sample(model, text(50)[0].tolist(), 300)
    assert reads.each == [50, *[1] * 299]
    rereading = build(model_config("v3", "tiny", V, hidden=8, layers=1, positions=64), seed=0)
    reads = Reads(rereading)
    sample(rereading, text(50)[0].tolist(), 20)
    assert reads.each[:3] == [50, 51, 52]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient_but_those_of_an_ablation(kind: str) -> None:
    model = model_of(kind)
    objective(model, text(), None, TRAIN).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    silent = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    assert silent == ({f"blocks.{n}.mix.omega" for n in range(3)} if kind == "unrotated" else set())
    rows = model.blocks[0].mix.project.weight.grad.abs().sum(1)  # type: ignore[union-attr,index] # a bank's
    N = 8
    assert (rows[6 * N :] == 0).all() == (kind == "uncoupled")
    assert (rows[3 * N : 4 * N] == 0).all() == (kind == "unrotated")
    assert (rows[: 3 * N] > 0).all()


def test_the_ablations_leave_out_what_they_say() -> None:
    whole = model_of()
    plain = read(whole, text())[0]
    for kind in ("uncoupled", "unrotated"):
        ablated = model_of(kind)
        ablated.load_state_dict(whole.state_dict())  # the same parameters
        assert (read(ablated, text())[0] - plain).abs().max() > 1e-3
    k = model_of("uncoupled")(text()).coupling_L
    assert (k == 0).all()
    assert (whole(text()).coupling_L > 0).all()


def test_a_hybrid_has_attention_in_every_nth_block() -> None:
    model = model_of("hybrid", layers=5)
    kinds = [type(block.mix) for block in model.blocks]  # type: ignore[union-attr,operator]
    assert kinds == [Mix, CausalAttention, Mix, CausalAttention, Mix]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 1025, 3000])
def test_a_text_may_have_any_length(length: int) -> None:
    logits, _ = read(model_of(), text(length, rows=1))
    assert logits.shape == (1, length, V)
    assert logits.isfinite().all()


def test_a_model_in_float64_is_computed_in_float64() -> None:
    single, double = read(model_of(), text())[0], read(model_of().double(), text())[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


def test_dropout_follows_the_embedding_and_both_halves_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = model_of(dropout=0.25), []
    kept = model_v4.dropout

    def dropout(x: Tensor, p: float, noise: torch.Generator | None) -> Tensor:
        seen.append((kept(x, p, noise) == 0).float().mean().item())
        return x

    monkeypatch.setattr(model_v4, "dropout", dropout)
    found = model(text(), torch.Generator().manual_seed(1))
    assert seen == pytest.approx([0.25] * (1 + 2 * model.config.layers), abs=0.05)
    assert torch.equal(found.hidden_BSD, model_of()(text()).hidden_BSD), "and nothing else is random"


def test_dropout_is_of_training_alone_and_follows_from_its_seed() -> None:
    model = model_of(dropout=0.25)
    assert torch.equal(model(text()).hidden_BSD, model_of()(text()).hidden_BSD)
    one, same, other = (model(text(), torch.Generator().manual_seed(seed)).hidden_BSD for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
