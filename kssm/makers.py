"""The choice among the makers of one operator: the fastest on a device, proven to work before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from kssm.errors import BadUsage
from kssm.trial import Unavailable, tried

Maker = TypeVar("Maker")

_IN_WORDS = {"cpu": "the CPU"}


class Makers(Generic[Maker]):
    """Who can compute an operator, and who does in this process on each type of device.

    Args:
        flag: of the command line, that names one.
        anywhere: by name, those that work on any device; the first of them falls in where no kernel works.
        kernels: by type of device, the name of its kernel, how to make it, and what of its outcome for a small input is
            too far from the truth (nothing, if it is right).
    """

    def __init__(
        self,
        flag: str,
        anywhere: Mapping[str, Maker],
        kernels: Mapping[str, tuple[str, Callable[[], Maker], Callable[[Maker], str]]],
    ) -> None:
        self._flag = flag
        self._anywhere = anywhere
        self._kernels = kernels
        self.portable = next(iter(anywhere.values()))
        self.in_use: dict[str, Maker] = {}

    def choose(self, device: str, name: str = "auto") -> tuple[Maker, str]:
        """Choose who computes on a device, for the whole process.

        Args:
            device: type of the device: cpu, cuda, mps.
            name: auto takes the fastest that works here.

        Returns:
            The maker, and why it is not a faster one: a line for people, or nothing.

        Raises:
            BadUsage: the one that was named does not work here.
        """
        found, why = self._find(device, name)
        self.in_use[device] = found
        return found, why

    def chosen(self, device: str) -> Maker:
        """Who computes on a type of device; the fastest, where nobody chose."""
        return self.in_use[device] if device in self.in_use else self.choose(device)[0]

    def _find(self, device: str, name: str) -> tuple[Maker, str]:
        if name in self._anywhere:
            return self._anywhere[name], ""
        if name == "auto" and device not in self._kernels:
            return self.portable, ""
        try:
            return self._tried(device, name), ""
        except Unavailable as error:
            if name == "auto":
                return self.portable, str(error)
            what, other = f"{self._flag} {name}: {error}", f"leave {self._flag} out to choose the fastest that works"
            raise BadUsage(what, other) from None

    def _tried(self, device: str, name: str) -> Maker:
        kind, make, furthest_off = self._kernels.get(device, ("", None, None))
        if name not in ("auto", kind) or make is None or furthest_off is None:
            home = next(each for each, kernel in self._kernels.items() if kernel[0] == name)
            raise Unavailable(f"the {name} kernel is for {_IN_WORDS.get(home, home)}, and the device is {device}")
        return tried(kind, make, furthest_off)
