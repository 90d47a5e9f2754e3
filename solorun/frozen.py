"""Frozen dataclasses without generated code: a `solorun status` must not wait for what it does not show.

The package `dataclasses` imports `inspect` and compiles five methods for every class: 0.6 ms each, more than a start of
Python for the classes of a status alone. Here the methods are written once, for all classes. To a type checker these
are the dataclasses of the standard library, and so they are to `dataclasses.asdict` and its like, on demand.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from dataclasses import replace as replace
    from typing import Any


class _Fields:
    """What the standard library looks for on a dataclass, made with its own means when somebody asks."""

    def __get__(self, _instance: object, kind: Any) -> Any:
        from dataclasses import field, make_dataclass

        defaults = kind._defaults  # noqa: SLF001 - the two are one room
        names = [(n, object, field(default=defaults[n]) if n in defaults else field()) for n in kind.__match_args__]
        kind.__dataclass_fields__ = vars(make_dataclass(kind.__name__, names))["__dataclass_fields__"]
        return kind.__dataclass_fields__


class _Frozen:
    """The methods of every frozen class: filled by place or name, immutable, equal when of one class and content."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()
    __dataclass_fields__ = _Fields()
    _setters: tuple[Callable[[object, object], None], ...] = ()
    _defaults: dict[str, Any] = {}  # noqa: RUF012 - never changed after its class is made

    def __init__(self, *values: object, **named: object) -> None:
        if named or len(values) != len(self._setters):
            values = self._complete(values, named)
        for put, value in zip(self._setters, values, strict=True):
            put(self, value)

    def _complete(self, values: tuple[object, ...], named: dict[str, Any]) -> tuple[object, ...]:
        """All values in the order of the fields.

        Raises:
            TypeError: too many, an unknown name, one twice, or one missing.
        """
        names, kind = self.__match_args__, type(self).__name__
        if len(values) > len(names):
            raise TypeError(f"{kind} takes {len(names)} values, {len(values)} were given")
        rest = names[len(values) :]
        if strange := named.keys() - set(rest):
            raise TypeError(f"{kind} got unexpected or repeated {', '.join(sorted(strange))}")
        given = {**self._defaults, **named}
        if missing := [name for name in rest if name not in given]:
            raise TypeError(f"{kind} lacks {', '.join(missing)}")
        return (*values, *(given[name] for name in rest))

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frozen) or other.__class__ is not self.__class__:
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({told})"

    def __setattr__(self, name: str, value: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self._values()


def _dataclass(*, frozen: bool, slots: bool) -> Callable[[type], type]:
    """Make a frozen class with slots of one that lists its fields, with defaults after those without."""
    if not (frozen and slots):
        raise ValueError("only dataclass(frozen=True, slots=True) is made here")
    return _made


def _made(cls: type) -> type:
    names = tuple(cls.__annotations__)
    rest = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__", *names)}
    defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
    made = type(cls.__name__, (_Frozen,), {**rest, "__slots__": names, "__match_args__": names, "_defaults": defaults})
    made.__qualname__ = cls.__qualname__
    made._setters = tuple(vars(made)[name].__set__ for name in names)  # type: ignore[attr-defined]  # noqa: SLF001
    return made


def _replace(value: Any, /, **changes: object) -> Any:
    """A copy with other values in some fields."""
    kept = {name: getattr(value, name) for name in value.__match_args__ if name not in changes}
    return type(value)(**kept, **changes)


if not TYPE_CHECKING:
    dataclass, replace = _dataclass, _replace
