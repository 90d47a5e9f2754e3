"""Where and in which precision to compute, and how a device says that its memory is full."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kssm.config import Precision, Size
from kssm.errors import BadUsage, KssmError

# No device shares an exception type with another: MPS and the CPU allocator raise a plain RuntimeError.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, "CUDA error: out of memory"; "MPS backend out of memory (MPS allocated: ..."
    "Invalid buffer size",  # MPS, one tensor above the largest Metal buffer
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of its matrix products.

    Args:
        device: where the model lives.
        precision: bfloat16 means autocast; weights and oscillators stay float32 either way.
        ranks: processes that share a step's rows.
    """

    device: torch.device
    precision: Literal["float32", "bfloat16"] = "float32"
    ranks: int = 1

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def choose(name: str = "auto", precision: Precision = "auto") -> Compute:
    """The device to train on: the one named, or with "auto" the best there is.

    Args:
        name: auto, cuda, mps or cpu.
        precision: auto is bfloat16 on CUDA that supports it, float32 elsewhere.

    Raises:
        BadUsage: an unknown name, a device that is not there, or bfloat16 where it is not supported.
    """
    there = available()
    if name not in ("auto", "cuda", "mps", "cpu"):
        raise BadUsage(f"device {name!r} is not one of auto, cuda, mps, cpu", "leave --device out to choose the best")
    if name == "auto":
        name = there[0]
    if name not in there:
        raise BadUsage(f"device {name} is not available here; there is {', '.join(there)}", "leave --device out")
    has_bfloat16 = name == "cpu" or (name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if precision == "bfloat16" and not has_bfloat16:
        raise BadUsage(f"device {name} does not compute in bfloat16", "use --precision float32")
    if precision == "auto":
        precision = "bfloat16" if name == "cuda" and has_bfloat16 else "float32"
    return Compute(torch.device(name), precision)


def prepare_cpu() -> None:
    """Settle this process for computing on the CPU; before its first tensor, since threads inherit it."""
    torch.set_flush_denormal(True)  # numbers below 1e-38 slow a CPU tenfold
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # glibc gives a freed activation back to the system, and the next one pays a page fault for every 4 KiB.
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def product_dtype(operand: Tensor) -> torch.dtype:
    """The type in which a matrix product is made here: autocast's where that is on, else the operand's."""
    device = operand.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else operand.dtype


def available() -> tuple[str, ...]:
    """Names of the devices of this machine, the fastest first; the CPU is always among them."""
    accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
    return (*(name for name, there in accelerators if there), "cpu")


def default_size(device: torch.device) -> Size:
    """The largest preset that is pleasant on this device: medium on an accelerator, tiny on a CPU."""
    return "tiny" if device.type == "cpu" else "medium"


def clear_caches(device: torch.device) -> None:
    """Give memory that no tensor uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


@contextlib.contextmanager
def memory_in_words() -> Iterator[None]:
    """Full memory as a KssmError, where nobody nearer knew a way round it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise KssmError(
            "out of memory",
            "use a smaller model or a shorter text at a time, or stop other programs that use this device",
        ) from None
