"""Setting R or k sets exactly that; the rest is as it was, and nothing of it stays behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.asked import Setting
from kssm.config import TrainConfig, model_config
from kssm.device import Compute
from kssm.errors import BadUsage
from kssm.experiment import OWN, Arm, Outcome, arms, meaning, place_of, run
from kssm.intervention import Arrangement, Intervention, intervening, set_phases
from kssm.language_model import Features, LanguageModel
from kssm.models import build

V, B, S, N = 13, 2, 7, 8
MODELS = ["v2", "v3", "v4"]
CPU = Compute(torch.device("cpu"))
TRAIN = TrainConfig(batch_size=B, gradient_accumulation=1, seq_length=S, max_steps=10, warmup_steps=1, lr=1e-3)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def order(theta_XN: Tensor, n: int = 1) -> Tensor:
    return torch.polar(torch.ones_like(theta_XN), n * theta_XN).mean(-1)


def some_phases(oscillators: int = N) -> Tensor:
    """Banks from nearly locked to incoherent, some of them in two clusters, far beyond the circle."""
    spread = torch.linspace(0.01, 4, 40)[:, None]
    theta = torch.randn(40, oscillators, generator=draws()) * spread
    theta[::5, : oscillators // 2] += math.pi
    return theta + torch.linspace(-20, 20, 40)[:, None]


def model_of(name: str, **changes: object) -> LanguageModel:
    """Parameters away from their initial symmetries, so that every oscillator matters."""
    facts = {"hidden": 8, "layers": 2, "oscillators": N, "positions": 0 if name == "v4" else 2 * S, **changes}
    facts |= {"group": 4} if name == "v4" else {}
    model = build(model_config(name, "tiny", V, **facts), seed=3)  # type: ignore[arg-type]
    shake = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=shake)
    return model


def tokens(length: int = S) -> Tensor:
    return torch.randint(V, (B, length), generator=torch.Generator().manual_seed(5))


def under(model: LanguageModel, what: Intervention | None) -> tuple[Features, Tensor]:
    with torch.inference_mode(), intervening(model, what):
        features = model(tokens())
        return features, model.logits(features.hidden_BSD)


@pytest.mark.parametrize("arrangement", ["kept", "shuffled", "random"])
@pytest.mark.parametrize("R", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("oscillators", [2, 5, 16, 48])
def test_phases_get_the_order_parameter_asked_for_about_the_same_mean(
    oscillators: int, R: float, arrangement: Arrangement
) -> None:
    before = some_phases(oscillators)
    after = order(set_phases(before, R, arrangement, draws()))
    assert (after.abs() - R).abs().max() < 1e-4
    if R > 0:
        turned = (after / order(before)).angle()
        assert turned.abs().max() < 1e-4


def test_each_bank_keeps_its_own_order_parameter_and_its_phases() -> None:
    before = some_phases()
    after = set_phases(before, None, "kept", draws())
    torch.testing.assert_close(after.cos(), before.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.sin(), before.sin(), atol=1e-5, rtol=0)


def test_raising_shrinks_all_deviations_from_the_mean_phase_by_one_factor() -> None:
    before = torch.linspace(-1.2, 1.5, N)
    after = set_phases(before, 0.97, "kept", draws())
    ratio = (after - after.mean()) / (before - before.mean())
    torch.testing.assert_close(ratio, ratio[:1].expand(N), atol=1e-4, rtol=0)
    assert 0 < ratio[0] < 1


def test_lowering_keeps_the_rank_order_and_ends_evenly_spaced() -> None:
    before = torch.tensor([0.3, -0.2, 0.9, 0.0, -1.0])
    for R in (0.5, 0.2):
        assert set_phases(before, R, "kept", draws()).argsort().tolist() == before.argsort().tolist()
    splay = set_phases(before, 0.0, "kept", draws()).sort().values
    torch.testing.assert_close(splay.diff(), torch.full((4,), 2 * math.pi / 5))


def test_shuffled_phases_keep_every_harmonic_and_random_ones_the_first_alone() -> None:
    before = some_phases()
    shuffled, random = (set_phases(before, None, how, draws()) for how in ("shuffled", "random"))
    for n in (1, 2, 3, 7):
        torch.testing.assert_close(order(shuffled, n), order(before, n), atol=1e-4, rtol=0)
    assert (shuffled.cos() - before.cos()).abs().max() > 0.5
    assert (order(random, 2) - order(before, 2)).abs().max() > 0.2
    torch.testing.assert_close(order(random).abs(), order(before).abs(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("R", [0.0, 0.6, 1.0])
def test_a_model_shows_the_order_parameter_that_was_set_and_other_logits(name: str, R: float) -> None:
    model = model_of(name)
    _, plain = under(model, None)
    features, logits = under(model, Intervention(order_parameter=R, phases=True))
    assert (features.order_parameter_L - R).abs().max() < 2e-4  # v2 and v3 measure with a floor under the root
    assert (logits - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("at", ["state", "readout"])
def test_setting_what_is_there_already_changes_nothing(name: str, at: str) -> None:
    model = model_of(name)
    _, plain = under(model, None)
    for what in (Intervention(), Intervention(phases=True, at=at)):  # type: ignore[arg-type]
        torch.testing.assert_close(under(model, what)[1], plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_behind_also_after_an_error(name: str) -> None:
    model = model_of(name)
    before = under(model, None)[1]
    with pytest.raises(ZeroDivisionError), intervening(model, Intervention(order_parameter=1.0, phases=True)):
        raise ZeroDivisionError
    assert torch.equal(under(model, None)[1], before)


def test_v3_reads_nothing_but_harmonics_and_v2_each_oscillator() -> None:
    shuffled = Intervention(phases=True, arrangement="shuffled")
    for name, least, most in (("v3", 0, 1e-4), ("v2", 1e-2, math.inf)):
        model = model_of(name)
        change = (under(model, shuffled)[1] - under(model, None)[1]).abs().max()
        assert least <= change < most


def state_after(model: LanguageModel, what: Intervention | None) -> list[Tensor]:
    state = under(model, what)[0].state
    assert state is not None
    return [z_BF for z_BF, _ in state]


def test_what_is_set_in_the_state_is_carried_on_and_keeps_every_length() -> None:
    model = model_of("v4")
    first, _ = state_after(model, Intervention(order_parameter=1.0, phases=True, at="state"))
    re, im = first.view(B, 2, 2, 4).unbind(1)  # [B, G, n]
    angles = torch.atan2(im, re)
    torch.testing.assert_close(angles.cos(), angles.cos().mean(-1, keepdim=True).expand(B, 2, 4), atol=5e-3, rtol=0)
    assert torch.hypot(re, im).std() > 0.01


def test_what_is_set_in_the_readout_leaves_the_first_banks_state_as_it_was() -> None:
    model = model_of("v4")
    changed = state_after(model, Intervention(order_parameter=1.0, phases=True, at="readout"))
    plain = state_after(model, None)
    torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=0)
    assert (changed[1] - plain[1]).abs().max() > 1e-3  # the next block has heard of it


def test_v4_without_coupling_is_the_same_model_with_k_set_to_0() -> None:
    model, uncoupled = model_of("v4"), model_of("v4", coupled=False)
    features, logits = under(model, Intervention(coupling=0.0))
    torch.testing.assert_close(logits, under(uncoupled, None)[1], atol=1e-5, rtol=0)
    assert features.coupling_L is not None
    assert (features.coupling_L == 0).all()


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_a_coupling_that_is_set_is_the_banks_own_k(name: str) -> None:
    model = model_of(name)
    plain = under(model, None)[0].order_parameter_L
    by_k = [under(model, Intervention(coupling=k))[0].order_parameter_L for k in (0.0, 0.5, 1.0)]
    assert not torch.equal(by_k[0], plain)
    assert (by_k[0] < by_k[1]).all()
    assert (by_k[1] < by_k[2]).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_table_pairs_batch_with_batch_and_proves_its_machinery(name: str) -> None:
    model = model_of(name)
    batches = [np.random.default_rng(n).integers(0, V, (B, S + 1)) for n in range(3)]
    chosen = arms([Setting("R", 0.5), Setting("k", 0.0)], place_of(model.config, [Setting("R", 0.5)], None))
    untouched, outcomes = run(model, lambda: batches, CPU, TRAIN, chosen)
    assert [outcome.name for outcome in outcomes] == [
        "R = own", "R = own, shuffled", "R = own, random", "R = 0.5", "R = 0.5, random", "k = own", "k = 0",
    ]  # fmt: skip
    found = {outcome.name: outcome for outcome in outcomes}
    assert abs(found["R = own"].difference) < 1e-4
    assert abs(found["k = own"].difference) < 1e-4
    assert found["R = 0.5"].order_parameter == pytest.approx(0.5, abs=1e-3)
    plain = sum(float(part.sums[1]) for part in untouched) / (3 * B * S)
    for outcome in outcomes:
        assert outcome.difference == pytest.approx(outcome.ce - plain, abs=1e-5)
        assert outcome.standard_error is not None


def test_one_batch_has_no_standard_error() -> None:
    batch = np.zeros((B, S + 1), dtype=np.int64)
    outcomes = run(model_of("v3"), lambda: [batch], CPU, TRAIN, arms([Setting("R", 1.0)], "readout"))[1]
    assert [outcome.standard_error for outcome in outcomes] == [None] * 5


@pytest.mark.parametrize(("changes", "setting", "at", "reason"), [
    ({"name": "v4", "coupled": False}, Setting("k", 0), None, "without coupling"),
    ({"name": "v4"}, Setting("k", 1.5), None, "lies in 0 to 1"),
    ({"name": "v3"}, Setting("R", 0.5), "state", "carries no state"),
    ({"name": "v4", "group": 1}, Setting("R", 0.5), None, "alone has R = 1"),
])  # fmt: skip
def test_what_a_model_cannot_have_set_is_refused(
    changes: dict[str, object], setting: Setting, at: str | None, reason: str
) -> None:
    name = changes.pop("name")
    config = model_config(name, "tiny", V, **changes)  # type: ignore[arg-type]
    with pytest.raises(BadUsage, match=reason):
        place_of(config, [setting], at)  # type: ignore[arg-type]


def outcome(name: str, difference: float, setting: Setting | None = None) -> Outcome:
    return Outcome(name, 0.5, None, 2.0, difference, 0.002, setting)


@pytest.mark.parametrize(("own", "random", "asked", "words"), [
    (0.0, 0.0, 0.001, "nothing that can be told (R = 0.5: +0.0010 ± 0.0020), and neither do random phases"),
    (0.0, 0.3, 0.001, "nothing that can be told (R = 0.5: +0.0010 ± 0.0020); which phases have that R does matter"),
    (0.0, 0.0, 0.200, "random phases with each token's own R do not: what is read is R, or moves with it"),
    (0.0, 0.3, 0.200, "more than their synchrony it matters which phases they are"),
    (0.0, 0.1, -0.20, "beside their synchrony it matters which phases they are"),
    (0.1, 0.3, 0.200, "this table proves nothing about R"),
])  # fmt: skip
def test_the_verdict_says_what_the_table_shows_and_no_more(own: float, random: float, asked: float, words: str) -> None:
    table = [outcome(OWN, own), outcome("R = own, random", random), outcome("R = 0.5", asked, Setting("R", 0.5))]
    (said,) = meaning(table)
    assert words in said


def test_of_several_values_the_greatest_difference_is_told() -> None:
    table = [outcome("k = own", 0.0), *(outcome(f"k = {k}", d, Setting("k", k)) for k, d in ((0, 0.1), (1, -0.4)))]
    (said,) = meaning(table)
    assert said.startswith("setting k changes the loss (k = 1: -0.4000 ± 0.0020)")


def test_a_control_is_never_a_setting() -> None:
    assert [arm.name for arm in arms([Setting("R", 0)], "state") if arm.setting is None] == [
        "R = own", "R = own, shuffled", "R = own, random", "R = 0, random",
    ]  # fmt: skip
    assert all(isinstance(arm, Arm) for arm in arms([], "state"))
