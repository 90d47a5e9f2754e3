"""The library of kernels in C for CPUs, built when the project is installed and a compiler is there (`kssm/native/`).

It knows nothing of Python or torch: it is called through ctypes with addresses, and lets go of the interpreter
meanwhile. Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from torch import Tensor

from kssm.trial import Unavailable

HOME = Path(__file__).parent
_VERSION = 3
_REBUILD = "`make install`, where a C compiler is, builds it"
_ADDRESS, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_PARAMETERS = {
    "kssm_readout_forward": [*[_ADDRESS] * 2, *[_COUNT] * 3, *[_NUMBER] * 2],
    "kssm_readout_backward": [*[_ADDRESS] * 4, *[_COUNT] * 3, *[_NUMBER] * 2],
    "kssm_scan_forward": [*[_ADDRESS] * 8, *[_COUNT] * 4, *[_NUMBER] * 4],
    "kssm_scan_backward": [*[_ADDRESS] * 10, *[_COUNT] * 4, *[_NUMBER] * 4],
    "kssm_convolution_forward": [*[_ADDRESS] * 4, *[_COUNT] * 4, *[_NUMBER] * 2],
    "kssm_convolution_backward": [*[_ADDRESS] * 6, *[_COUNT] * 4, *[_NUMBER] * 2],
    "kssm_native_form": [_NUMBER],
}


def opened(folder: Path = HOME) -> ctypes.CDLL:
    """The library, its functions ready to be called.

    Args:
        folder: where it was built.

    Raises:
        Unavailable: there is none, or none that this machine or this version can use.
    """
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
    for name, parameters in _PARAMETERS.items():
        getattr(library, name).argtypes = parameters
    library.kssm_native_form.restype = ctypes.c_char_p
    return library


def name_of_form(library: ctypes.CDLL, form: int) -> str:
    """What a maker that uses a form is called, for people.

    Args:
        library: as opened.
        form: instruction set, counted from the fastest that this processor has; others are there to be tested.

    Raises:
        Unavailable: this processor has no such form.
    """
    if (called := library.kssm_native_form(form)) is None:
        raise Unavailable(f"this processor has no form {form} of the native kernel")
    return f"native ({called.decode()})"


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the numbers of contiguous tensors begin."""
    return [tensor.data_ptr() for tensor in tensors]


def require_memory(failed: int, purpose: str) -> None:
    """Raise MemoryError if a function of the library says that memory did not suffice.

    Args:
        failed: what it returned.
        purpose: what the memory was for.
    """
    if failed:
        raise MemoryError(f"no memory for {purpose}")
