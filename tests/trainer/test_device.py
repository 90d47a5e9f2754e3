"""Choosing a device, and hearing it say that its memory is full."""

from __future__ import annotations

import pytest
import torch

from kssm.device import Compute, available, choose, clear_caches, default_size, is_out_of_memory
from kssm.errors import BadUsage


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB, max allowed: 18.13 GB)."),
    RuntimeError("Invalid buffer size: 19.38 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
])  # fmt: skip
def test_full_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
])  # fmt: skip
def test_other_errors_are_not_taken_for_full_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_the_cpu_allocator_says_so_in_the_words_we_know() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


def test_auto_takes_the_fastest_device_there_is() -> None:
    assert choose("auto").device.type == available()[0]
    assert available()[-1] == "cpu"


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert choose("cpu") == Compute(torch.device("cpu"), "float32")
    assert choose("cpu", "bfloat16").precision == "bfloat16"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(BadUsage, match=f"device {name} is not available here; there is cpu"):
        choose(name)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(BadUsage, match="'tpu' is not one of auto, cuda, mps, cpu"):
        choose("tpu")


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_cuda_takes_bfloat16_where_it_has_it(bfloat16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_options: bfloat16)
    assert choose("auto") == Compute(torch.device("cuda"), precision)  # type: ignore[arg-type]
    if not bfloat16:
        with pytest.raises(BadUsage, match="does not compute in bfloat16"):
            choose("cuda", "bfloat16")


def test_mps_comes_before_the_cpu_and_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose() == Compute(torch.device("mps"), "float32")


def test_the_default_size_fits_the_device() -> None:
    assert [default_size(torch.device(name)) for name in ("cpu", "cuda", "mps")] == ["tiny", "medium", "medium"]


def test_clearing_caches_on_a_cpu_does_no_harm() -> None:
    clear_caches(torch.device("cpu"))
