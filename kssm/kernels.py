"""Which kernel computes a model's own operator on this machine: v3's readout, v4's scan."""

from __future__ import annotations

from kssm import readout, scan
from kssm.config import ModelConfig, ReadoutName, ScanName
from kssm.device import Compute


def choose(model: ModelConfig, compute: Compute, of_readout: ReadoutName, of_scan: ScanName) -> list[str]:
    """Choose for the whole process, and tell it in a line for people.

    Raises:
        BadUsage: the one that was named does not work here.
    """
    device = compute.device.type
    if model.name == "v3":
        what, (found, why) = "readout", readout.choose(device, of_readout)
    elif model.name == "v4":
        what, (found, why) = "scan", scan.choose(device, of_scan)  # type: ignore[assignment] # both have names
    else:
        return []
    return [f"{what}: {found.name}" + (f" ({why})" if why else "")]


def in_use(model: ModelConfig, compute: Compute) -> dict[str, str]:
    """The kernels that a run's exact numbers depend on, by operator."""
    device = compute.device.type
    return {
        **({"readout": readout.chosen(device).name} if model.name == "v3" else {}),
        **({"scan": scan.chosen(device).name} if model.name == "v4" else {}),
    }
