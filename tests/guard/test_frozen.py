"""The guard's frozen dataclasses do what those of the standard library do."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from solorun.frozen import dataclass, replace
from solorun.owner import Free, Gone, Here, ProcessId


@dataclass(frozen=True, slots=True)
class Ours:
    """A class made by our means."""

    name: str
    size: int = 3

    @property
    def double(self) -> int:
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    """The same, made by the standard library's."""

    name: str
    size: int = 3


Either = pytest.mark.parametrize("kind", [Ours, Theirs])


@Either
def test_values_go_in_by_place_or_name_and_defaults_fill_the_rest(kind: type[Ours]) -> None:
    assert kind("a", 3) == kind("a") == kind(name="a") == kind("a", size=3) == kind(size=3, name="a")
    assert (kind("a", 4).name, kind("a", 4).size) == ("a", 4)


@Either
@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), (("a", 1, 2), {}), (("a",), {"name": "b"}), (("a",), {"other": 1}), ((), {"size": 1})],
)
def test_wrong_values_are_a_type_error(kind: type[Ours], values: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)  # type: ignore[arg-type]


@Either
def test_nothing_can_be_changed_or_added(kind: type[Ours]) -> None:
    one = kind("a")
    for name in ("name", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(one, name, "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.name
    assert one == kind("a")
    assert not hasattr(one, "__dict__")


@Either
def test_equal_are_those_of_one_class_and_one_content(kind: type[Ours]) -> None:
    assert kind("a") != kind("b")
    assert kind("a") != ("a", 3)
    assert hash(kind("a")) == hash(kind("a"))
    assert len({kind("a"), kind("a"), kind("b")}) == 2
    assert Gone() != Free()
    assert bool(Free())


@Either
def test_they_can_be_copied_replaced_shown_and_matched(kind: type[Ours]) -> None:
    one = kind("a", 4)
    assert copy.deepcopy(one) == copy.copy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own
    assert dataclasses.replace(one, size=5) == kind("a", 5)
    assert dataclasses.asdict(one) == {"name": "a", "size": 4}
    assert [(field.name, field.default) for field in dataclasses.fields(one)][1] == ("size", 3)
    assert repr(one) == f"{kind.__name__}(name='a', size=4)"
    match one:
        case kind(name, size):  # type: ignore[misc]
            assert (name, size) == ("a", 4)


def test_a_replaced_value_must_have_a_field() -> None:
    assert replace(Ours("a"), name="b") == Ours("b")
    assert Ours("a", 4).double == 8
    with pytest.raises(TypeError):
        replace(Ours("a"), other=1)


def test_one_within_another_is_told_as_a_whole() -> None:
    one = ProcessId(Here("h", "m", "b", "n"), 1, 2)
    assert dataclasses.asdict(one) == {
        "here": {"host": "h", "machine": "m", "boot": "b", "namespace": "n"}, "pid": 1, "started": 2,
    }  # fmt: skip


def test_other_dataclasses_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen"):
        dataclass(frozen=False, slots=True)
