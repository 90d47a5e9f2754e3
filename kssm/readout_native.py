"""The readout in C for CPUs, built when the project is installed and a compiler is there (`kssm/native/readout.c`).

The library knows nothing of Python or torch: it is called through ctypes with addresses, and lets go of the
interpreter meanwhile. Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from kssm.readout_maker import Unavailable

_VERSION = 2
_REBUILD = "`make install`, where a C compiler is, builds it"


class NativeReadout:
    """See `kssm.readout_maker.Readout`; contiguous float32 on the CPU only.

    Args:
        folder: where the built library lies.
        form: instruction set, counted from the fastest that this processor has; others are there to be tested.

    Raises:
        Unavailable: there is none, or none that this machine or this version can use.
    """

    def __init__(self, folder: Path = Path(__file__).parent, form: int = 0) -> None:
        self._library, self._form = _opened(folder), form
        if (called := self._library.kssm_native_form(form)) is None:
            raise Unavailable(f"this processor has no form {form} of the native kernel")
        self.name = f"native ({called.decode()})"

    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        readings_MF = theta_MN.new_empty(M, 3 * H)
        _require_memory(
            self._library.kssm_readout_forward(
                theta_MN.data_ptr(), readings_MF.data_ptr(), M, N, H, torch.get_num_threads(), self._form
            )
        )
        return readings_MF

    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        """See `kssm.readout_maker.Readout`."""
        M, N = theta_MN.shape
        d_theta_MN = torch.empty_like(theta_MN)
        _require_memory(
            self._library.kssm_readout_backward(
                theta_MN.data_ptr(), readings_MF.data_ptr(), d_readings_MF.data_ptr(), d_theta_MN.data_ptr(),
                M, N, readings_MF.shape[1] // 3, torch.get_num_threads(), self._form,
            )
        )  # fmt: skip
        return d_theta_MN


def _opened(folder: Path) -> ctypes.CDLL:
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_native{suffix}").is_file()), None)
    if path is None:
        raise Unavailable(f"the native kernel was not built; {_REBUILD}")
    try:
        library = ctypes.CDLL(str(path))
        version = library.kssm_native_version()
    except (OSError, AttributeError) as error:  # another system's, in a home directory that both share
        raise Unavailable(f"the native kernel {path.name} does not load here ({error}); {_REBUILD}") from None
    if version != _VERSION:
        raise Unavailable(f"the native kernel {path.name} is of another version; {_REBUILD}")
    address, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.kssm_readout_forward.argtypes = [*[address] * 2, *[count] * 3, number, number]
    library.kssm_readout_backward.argtypes = [*[address] * 4, *[count] * 3, number, number]
    library.kssm_native_form.argtypes, library.kssm_native_form.restype = [number], ctypes.c_char_p
    return library


def _require_memory(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the readout's sums")
