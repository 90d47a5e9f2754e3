"""The hybrid's attention: sees nothing of the future and not beyond its reach, and goes on from its state."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kssm import attention
from kssm.attention import CausalAttention
from kssm.config import model_config
from kssm.errors import BadUsage
from kssm.models import build
from tests.trainer.scenes import write_scenes

B, D, REACH = 2, 64, 8
ROOT = Path(__file__).resolve().parents[2]


def layer() -> CausalAttention:
    torch.manual_seed(0)
    return CausalAttention(D).double()


def text(S: int, seed: int = 1) -> Tensor:
    return torch.randn(B, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_parts(one: CausalAttention, x_BSD: Tensor, sizes: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    state: tuple[Tensor, ...] = ()
    found = []
    for part in x_BSD.split(sizes, 1):
        y_BSD, state = one(part, state)
        found.append(y_BSD)
    return torch.cat(found, 1), state


@pytest.fixture
def _short_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "REACH", REACH)


def by_definition(one: CausalAttention, x_BSD: Tensor, reach: int) -> Tensor:
    """Each token, head by head, over the tokens it may see."""
    q, k, v = (part.unflatten(-1, (-1, 32)) for part in one.project(x_BSD).chunk(3, -1))  # [B, S, K, C]
    y = torch.zeros_like(q)
    for b in range(x_BSD.shape[0]):
        for t in range(x_BSD.shape[1]):
            for head in range(D // 32):
                seen = slice(max(0, t - reach + 1), t + 1)
                weight = (k[b, seen, head] @ q[b, t, head] / math.sqrt(32)).softmax(0)
                y[b, t, head] = weight @ v[b, seen, head]
    return one.out(y.flatten(2))


@pytest.mark.usefixtures("_short_reach")
@pytest.mark.parametrize("S", [1, REACH, 21])
def test_each_token_sees_so_many_up_to_itself_and_no_others(S: int) -> None:
    one, x = layer(), text(S)
    torch.testing.assert_close(one(x, ())[0], by_definition(one, x, REACH), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_short_reach")
@pytest.mark.parametrize("S", [REACH, 21])
def test_what_comes_later_changes_nothing_before_it(S: int) -> None:
    one, before = layer(), text(S)
    for place in range(1, S):
        after = before.clone()
        after[:, place:] = text(S, seed=2)[:, place:]
        difference = (one(before, ())[0] - one(after, ())[0]).abs()
        assert difference[:, :place].max() == 0
        assert difference[:, place].max() > 0


@pytest.mark.usefixtures("_short_reach")
def test_the_first_token_out_of_reach_changes_nothing_and_the_last_within_it_does() -> None:
    one, before = layer(), text(21)
    for t in range(REACH, 21):
        for place, seen in ((t - REACH, False), (t - REACH + 1, True)):
            after = before.clone()
            after[:, place] += 1
            difference = (one(before, ())[0] - one(after, ())[0])[:, t].abs().max()
            assert (difference > 0) == seen


@pytest.mark.usefixtures("_short_reach")
@pytest.mark.parametrize("sizes", [[21], [1] * 21, [5, 16], [16, 5], [7, 1, 13], [8, 8, 5]])
def test_a_text_in_parts_is_the_text_at_once(sizes: list[int]) -> None:
    one, x = layer(), text(21)
    found, state = in_parts(one, x, sizes)
    whole, end = one(x, ())
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)
    for part, at_once in zip(state, end, strict=True):
        torch.testing.assert_close(part, at_once, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_short_reach")
def test_the_state_grows_no_further_than_what_the_next_token_can_see() -> None:
    one = layer()
    sizes = [part.shape[2] for S in (1, 5, REACH - 1, REACH, 40) for part in one(text(S), ())[1]]
    assert sizes == [size for size in (1, 5, REACH - 1, REACH - 1, REACH - 1) for _ in "kv"]
    assert {part.shape[2] for part in in_parts(one, text(40), [9, 1, 30])[1]} == {REACH - 1}


def test_the_reach_is_a_thousand_tokens_and_more_of_a_text_is_read() -> None:
    one, before = layer().float(), torch.randn(1, 1030, D, generator=torch.Generator().manual_seed(3))
    after = before.clone()
    after[:, 0] += 1
    difference = (one(before, ())[0] - one(after, ())[0]).abs().amax((0, 2))
    assert difference[1023] > 0
    assert difference[1024:].max() == 0


@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_a_hybrid_goes_on_from_its_state_as_if_it_had_read_all_at_once(tokens: int) -> None:
    model = build(model_config("v4", "tiny", 13, hidden=D, layers=2, oscillators=32, attention_every=2), seed=0)
    rows = torch.randint(13, (B, 120), generator=torch.Generator().manual_seed(4))
    whole = model(rows).hidden_BSD
    first = model(rows[:, :tokens])
    rest = model(rows[:, tokens:], None, first.state)
    torch.testing.assert_close(torch.cat((first.hidden_BSD, rest.hidden_BSD), 1), whole, atol=1e-6, rtol=0)


def test_a_hybrid_has_attention_in_every_nth_block_and_oscillators_in_the_others() -> None:
    shape = {"hidden": D, "layers": 5, "oscillators": 32}
    model = build(model_config("v4", "tiny", 13, **shape, attention_every=2), seed=0)
    assert [isinstance(block.mix, CausalAttention) for block in model.blocks] == [False, True, False, True, False]
    assert len(model(torch.zeros(1, 3, dtype=torch.long)).order_parameter_L) == 3
    with pytest.raises(BadUsage, match="would leave no oscillators"):
        model_config("v4", "tiny", 13, attention_every=1)
    with pytest.raises(BadUsage, match="of 3 blocks none would have attention"):
        model_config("v4", "tiny", 13, attention_every=4)


def test_a_hybrid_trains_and_samples_from_the_command_line(tmp_path: Path) -> None:
    """Attention in the third of tiny's blocks and in none of the others, also after a checkpoint was read."""
    own = {"SOLORUN_STATE": str(tmp_path / "state"), "KSSM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    scenes, results = write_scenes(tmp_path / "scenes"), tmp_path / "results"

    def kssm(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kssm", *words], cwd=ROOT, env={**os.environ, **own}, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    quick = ["--size", "tiny", "--max-steps", "2", "--batch-size", "2", "--seq-length", "32", "--eval-batches", "1"]
    where = ["--data-dir", str(scenes), "--vocabulary", "bytes", "--output-dir", str(results), "--device", "cpu"]
    kssm("train", "v4", "--attention-every", "3", *quick, *where)
    drawn = kssm("sample", str(results), "--prompt", "To be", "--tokens", "5", "--seed", "1", "--device", "cpu")
    assert drawn == kssm("sample", str(results), "--prompt", "To be", "--tokens", "5", "--seed", "1", "--device", "cpu")
    assert drawn.startswith("To be")
