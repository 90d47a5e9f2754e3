"""`--carry-state`: each row goes on where it was, with the state that it was left in; nothing is lost or mixed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kssm.batches import batch_digest, carried_batch_at, carried_begins, in_order
from kssm.carried import Carried
from kssm.config import TrainConfig, model_config, train_config
from kssm.device import Compute
from kssm.errors import BadUsage, CheckpointError, CorpusError, Stopped
from kssm.language_model import LanguageModel
from kssm.leading import require_whole_shares
from kssm.models import build
from kssm.plan import plan_fresh
from kssm.step import Stepper
from kssm.wishes import Wishes

PLACES = np.arange(5_003, dtype=np.uint16)  # each token is its own place
ROWS, S, V = 8, 6, 13
CPU = Compute(torch.device("cpu"))
TRAIN = TrainConfig(
    batch_size=ROWS, gradient_accumulation=1, seq_length=S, max_steps=20, warmup_steps=1, lr=1e-2, lambda_reg=0.0,
    carry_state=True,
)  # fmt: skip
TEXT = np.random.default_rng(0).integers(0, V, 401).astype(np.uint16)  # an epoch of 7 steps


@pytest.mark.parametrize(("tokens", "rows", "length"), [(5_003, 8, 64), (401, 8, 6), (97, 3, 32), (65, 4, 16)])
def test_every_token_is_predicted_at_most_once_in_an_epoch_and_each_row_goes_on_where_it_was(
    tokens: int, rows: int, length: int
) -> None:
    begins = [step for step in range(300) if carried_begins(tokens, step=step, rows=rows, length=length)]
    steps = begins[1]
    assert begins == list(range(0, 300, steps))
    for epoch in range(3):
        batches = [
            carried_batch_at(PLACES[:tokens], seed=1, step=epoch * steps + step, rows=rows, length=length)
            for step in range(steps)
        ]
        assert all((np.diff(batch, axis=1) == 1).all() for batch in batches)
        for before, after in itertools.pairwise(batches):
            assert (after[:, 0] == before[:, -1]).all()
        predicted = np.concatenate([batch[:, 1:].ravel() for batch in batches])
        assert len(set(predicted.tolist())) == len(predicted) == steps * rows * length
        assert tokens - len(predicted) < rows * (2 * length + 1)  # what each row's end leaves for another epoch


def test_rows_read_their_own_stretch_and_epochs_have_their_own_borders() -> None:
    steps = next(step for step in range(1, 500) if carried_begins(5_003, step=step, rows=4, length=50))
    first = [carried_batch_at(PLACES, seed=3, step=epoch * steps, rows=4, length=50)[:, 0] for epoch in range(12)]
    assert all((np.diff(starts) == 5_002 // 4).all() for starts in first)
    assert len({int(starts[0]) for starts in first}) > 6


def test_the_batch_is_a_function_of_the_step_alone_and_the_same_in_every_version() -> None:
    batch = in_order(PLACES, train_config("v4", "tiny", carry_state=True))
    forwards = [batch(step) for step in range(12)]
    assert all(np.array_equal(batch(step), forwards[step]) for step in reversed(range(12)))
    # A run saved by an older version continues with its own order: this digest never changes.
    assert batch_digest(carried_batch_at(PLACES, seed=1337, step=123, rows=8, length=64)) == "093d2489494e"


def test_a_text_too_short_for_a_window_in_each_row_is_told() -> None:
    with pytest.raises(CorpusError, match=r"has 64 tokens; 4 rows .* need 65") as caught:
        carried_batch_at(PLACES[:64], seed=1, step=0, rows=4, length=16)
    assert "--carry-state" in caught.value.next_step


def model_of() -> LanguageModel:
    config = model_config("v4", "tiny", V, hidden=8, layers=2, oscillators=8, group=4)
    return build(config, seed=0)


def stepper(model: LanguageModel, should_stop: Callable[[], bool] = lambda: False) -> Stepper:
    carried = Carried(lambda step: carried_begins(len(TEXT), step=step, rows=ROWS, length=S))
    return Stepper(
        model, TRAIN, CPU, in_order(TEXT, TRAIN), log=lambda _: None, should_stop=should_stop, carried=carried
    )


def left(training: Stepper) -> dict[str, Tensor]:
    assert training.carried is not None
    return training.carried.tensors()


def test_a_step_begins_with_the_state_that_the_one_before_left() -> None:
    training = stepper(model_of())
    seen: list[bool] = []
    training.model.register_forward_pre_hook(lambda _model, args: seen.append(args[2] is not None))
    for step in range(9):
        training.step(step)
    assert seen == [False, *[True] * 6, False, True]  # an epoch has seven steps


def test_the_state_of_a_step_is_that_of_reading_the_row_so_far() -> None:
    model = model_of()
    training = stepper(model)
    for group in training.optimizer.param_groups:
        group["weight_decay"] = 0.0
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(4):
        training.step(step)
        model.load_state_dict(frozen)  # the same model reads on
    rows = np.concatenate([training._batch(step)[:, :-1] for step in range(4)], 1)
    whole = model(torch.from_numpy(rows)).state
    assert whole is not None
    expected = {f"carried.{b}.{n}": tensor for b, block in enumerate(whole) for n, tensor in enumerate(block)}
    assert expected.keys() == left(training).keys()
    for name, tensor in left(training).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


def test_a_restored_state_makes_the_very_same_next_steps() -> None:
    whole, parts = stepper(model_of()), stepper(model_of())
    for step in range(3):
        whole.step(step)
        parts.step(step)
    saved = {name: tensor.clone() for name, tensor in left(parts).items()}
    resumed = stepper(model_of())
    resumed.model.load_state_dict(parts.model.state_dict())
    resumed.optimizer.load_state_dict(parts.optimizer.state_dict())
    assert resumed.carried is not None
    resumed.carried.restore({**saved, "weights.x": torch.zeros(1)}, CPU.device)
    for step in range(3, 9):
        expected, found = whole.step(step), resumed.step(step)
        assert (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)
    assert all(torch.equal(value, left(resumed)[name]) for name, value in left(whole).items())
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_lost_state_would_have_been_another_run() -> None:
    whole, forgetful = stepper(model_of()), stepper(model_of())
    whole.step(0)
    forgetful.step(0)
    assert forgetful.carried is not None
    forgetful.carried._state = None
    assert whole.step(1).loss != forgetful.step(1).loss


def test_a_checkpoint_without_the_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has no carried state"):
        Carried(lambda _step: False).restore({"weights.x": torch.zeros(1)}, CPU.device)
    with pytest.raises(CheckpointError, match="has no carried state"):
        Carried(lambda step: step == 7).restore({}, CPU.device, 6)
    Carried(lambda step: step == 7).restore({}, CPU.device, 7)


def test_micro_batches_that_memory_halves_keep_their_rows_in_order() -> None:
    roomy, tight = stepper(model_of()), stepper(model_of())

    def refuse(_block: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError

    roomy.step(0)
    tight.step(0)
    tight.model.blocks[1].register_forward_pre_hook(refuse)  # type: ignore[union-attr,operator]
    for step in (1, 2):
        expected, found = roomy.step(step), tight.step(step)
        assert found.ce == pytest.approx(expected.ce, rel=1e-5)
    assert tight.micro_batch == 2
    for name, tensor in left(roomy).items():
        assert len(tensor) == ROWS
        torch.testing.assert_close(left(tight)[name], tensor, atol=1e-4, rtol=0)


def test_a_step_that_was_left_half_way_is_made_again_from_the_same_state() -> None:
    whole, stopped = stepper(model_of()), stepper(model_of())
    whole.micro_batch = stopped.micro_batch = 4
    for step in range(2):
        whole.step(step)
        stopped.step(step)
    stopped._should_stop = lambda: True
    with pytest.raises(Stopped):
        stopped.step(2)
    stopped._should_stop = lambda: False
    assert stopped.step(2).loss == whole.step(2).loss
    assert all(torch.equal(value, left(stopped)[name]) for name, value in left(whole).items())


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_a_model_without_memory_carries_nothing_on(name: str) -> None:
    with pytest.raises(BadUsage, match=f"--carry-state: {name} remembers nothing"):
        plan_fresh(Wishes(name, training={"carry_state": True}), "tiny", 300)  # type: ignore[arg-type]


def test_ranks_do_not_share_a_carried_state() -> None:
    with pytest.raises(BadUsage, match=r"--carry-state: .* not shared out among ranks"):
        require_whole_shares(TRAIN, Compute(torch.device("cpu"), ranks=2))
    require_whole_shares(TRAIN, CPU)


def test_a_stop_within_the_first_step_of_an_epoch_saves_a_state_that_a_run_can_go_on_from() -> None:
    whole, stopped = stepper(model_of()), stepper(model_of())
    whole.micro_batch = stopped.micro_batch = 4
    for step in range(7):  # an epoch
        whole.step(step)
        stopped.step(step)
    stopped._should_stop = lambda: True
    with pytest.raises(Stopped):
        stopped.step(7)
    saved = {name: tensor.clone() for name, tensor in left(stopped).items()}
    assert saved.keys() == left(whole).keys(), "what a snapshot of now would hold"
    resumed = stepper(model_of())
    resumed.micro_batch = 4
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.optimizer.load_state_dict(stopped.optimizer.state_dict())
    assert resumed.carried is not None
    resumed.carried.restore(saved, CPU.device)
    for step in range(7, 16):
        assert resumed.step(step).loss == whole.step(step).loss


def test_a_snapshot_holds_what_it_was_made_of_however_the_steps_go_on() -> None:
    training = stepper(model_of())
    for step in range(16):
        training.step(step)
        taken = left(training)
        before = {name: tensor.clone() for name, tensor in taken.items()}
        training.step(step)
        assert all(torch.equal(tensor, before[name]) for name, tensor in taken.items())


def test_a_forged_name_of_a_carried_tensor_is_told() -> None:
    for name in ("carried.x", "carried.1", "carried.1.2.3", "carried.-1.0"):
        with pytest.raises(CheckpointError, match="no part of a carried state"):
            Carried(lambda _step: False).restore({name: torch.zeros(1)}, CPU.device)


def test_a_carried_state_with_a_part_missing_is_told() -> None:
    for names in (("carried.0.1",), ("carried.1.0",), ("carried.0.0", "carried.0.2")):
        with pytest.raises(CheckpointError, match="is missing"):
            Carried(lambda _step: False).restore(dict.fromkeys(names, torch.zeros(1)), CPU.device)


def test_a_carried_state_of_another_form_is_told_before_a_kernel_reads_beyond_its_end() -> None:
    trained = stepper(model_of())
    trained.step(8)
    sound = left(trained)
    restored = Carried(lambda _step: False)
    restored.restore(sound, CPU.device)
    restored.require_fit(trained.model, ROWS)
    for wrong in (
        lambda t: t[:-1],
        lambda t: t[..., :-1],
        lambda t: t.flatten(),
        lambda t: t.repeat(2, *[1] * (t.dim() - 1)),
    ):
        for name in sound:
            forged = Carried(lambda _step: False)
            forged.restore({**sound, name: wrong(sound[name])}, CPU.device)
            with pytest.raises(CheckpointError, match="not of this model's form"):
                forged.require_fit(trained.model, ROWS)
    fewer = Carried(lambda _step: False)
    fewer.restore({name: tensor for name, tensor in sound.items() if name.startswith("carried.0.")}, CPU.device)
    with pytest.raises(CheckpointError, match="not of this model's form"):
        fewer.require_fit(trained.model, ROWS)
