"""The readout's kernels for accelerators, without one.

Triton's kernel runs in Triton's own interpreter, where triton can be imported. Metal's source is compiled as C++
against `metal_on_cpu.h` and called through a stand-in for what `torch.mps.compile_shader` returns: that shows its
arithmetic, its bounds and its barriers, not that Apple's compiler takes it.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kssm import readout
from kssm.errors import BadUsage
from kssm.readout import order_parameters
from kssm.readout_maker import Readout, furthest_off
from kssm.readout_metal import MetalReadout
from kssm.readout_portable import PortableReadout
from kssm.trial import Unavailable, tried
from tests.trainer.phases import assert_right, phases, synchronised

ENTRIES = """
#include "readout.metal"
extern "C" void readout_forward_on_cpu(const uint32_t *threads, const uint32_t *group_size, void *const *a) {
    dispatch(threads, group_size, [=](uint2 group, uint lane) {
        readout_forward((const float *)a[0], (float *)a[1], *(long *)a[2], *(long *)a[3], group, lane);
    });
}
extern "C" void readout_backward_on_cpu(const uint32_t *threads, const uint32_t *group_size, void *const *a) {
    dispatch(threads, group_size, [=](uint2 group, uint lane) {
        readout_backward((const float *)a[0], (const float *)a[1], (const float *)a[2], (float *)a[3], *(long *)a[4],
                         *(long *)a[5], group, lane);
    });
}
"""


class StandInForShaders:
    """What `torch.mps.compile_shader` returns, of a source that was compiled for the CPU: kernels by name.

    As there, tensors pass as addresses and integers as 64 bits, and `threads` are whole, threadgroups times their size.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Callable[..., None]:
        entry = getattr(self._library, f"{name}_on_cpu")

        def kernel(*args: Tensor | int, threads: tuple[int, int], group_size: tuple[int, int]) -> None:
            assert threads[0] % group_size[0] == 0, "the last threadgroup would be smaller"
            assert group_size[1] == 1
            numbers = [None if isinstance(each, Tensor) else ctypes.c_int64(each) for each in args]
            addresses = [
                each.data_ptr() if isinstance(each, Tensor) else ctypes.addressof(number)
                for each, number in zip(args, numbers, strict=True)
            ]
            assert all(
                each.is_contiguous() and each.dtype == torch.float32 for each in args if isinstance(each, Tensor)
            )
            entry((ctypes.c_uint32 * 2)(*threads), (ctypes.c_uint32 * 2)(*group_size),
                  (ctypes.c_void_p * len(args))(*addresses))  # fmt: skip

        return kernel


@pytest.fixture(scope="module")
def metal(tmp_path_factory: pytest.TempPathFactory) -> Readout:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here to read the Metal source with")
    folder = tmp_path_factory.mktemp("metal")
    (folder / "metal_stdlib").write_text(Path(__file__).with_name("metal_on_cpu.h").read_text())
    (folder / "entries.cpp").write_text(ENTRIES)

    def compile_shader(source: str) -> StandInForShaders:
        (folder / "readout.metal").write_text(source)
        subprocess.run(
            [compiler, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-pthread", f"-I{folder}",
             "entries.cpp", "-o", "metal.so"],
            cwd=folder, check=True,
        )  # fmt: skip
        return StandInForShaders(ctypes.CDLL(str(folder / "metal.so")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.mps, "compile_shader", compile_shader)
        return MetalReadout()


class OnGpu:
    """A maker for CUDA asked from the CPU, so that the tests need not know where it computes."""

    def __init__(self, maker: Readout) -> None:
        self._maker, self.name = maker, maker.name

    def forward(self, theta: Tensor, H: int) -> Tensor:
        return self._maker.forward(theta.cuda(), H).cpu()

    def backward(self, theta: Tensor, readings: Tensor, d_readings: Tensor) -> Tensor:
        return self._maker.backward(theta.cuda(), readings.cuda(), d_readings.cuda()).cpu()


@pytest.fixture(scope="module")
def triton() -> Iterator[Readout]:
    """On a GPU where there is one, else in Triton's interpreter."""
    if torch.cuda.is_available():
        pytest.importorskip("triton")
        from kssm.readout_triton import TritonReadout

        yield OnGpu(TritonReadout())
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read at the import of triton, of the kernels, and at the first call
        pytest.importorskip("triton", reason="triton is not installed; only torch's builds for CUDA bring it")
        from kssm.readout_triton import TritonReadout

        yield TritonReadout()


@pytest.fixture(params=["triton", "metal"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Readout:
    made: Readout = request.getfixturevalue(request.param)
    monkeypatch.setitem(readout._MAKERS.in_use, "cpu", made)
    return made


@pytest.mark.parametrize("H", [1, 15, 16, 17, 33, 70])
@pytest.mark.parametrize("shape", [(3, 1), (2, 9), (2, 48), (2, 192), (1, 300)])
@pytest.mark.usefixtures("maker")
def test_a_kernel_agrees_with_the_definition_in_float64(shape: tuple[int, ...], H: int) -> None:
    assert_right(phases(*shape, dtype=torch.float32), H)


@pytest.mark.parametrize("R", [0.0, 0.5, 0.99, 0.9999])
@pytest.mark.usefixtures("maker")
def test_a_kernel_agrees_at_every_level_of_synchrony(R: float) -> None:
    assert_right(synchronised(12, R), 32)


@pytest.mark.parametrize("value", [1e4, -3e5, 1e20])
@pytest.mark.usefixtures("maker")
def test_a_kernel_reads_a_phase_far_beyond_the_circle_rightly(value: float) -> None:
    theta = phases(3, 20, dtype=torch.float32).detach()
    theta[1, 7] = value
    assert_right(theta.requires_grad_(), 20)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("maker")
def test_a_phase_that_is_no_number_spoils_its_own_token_alone(value: float) -> None:
    theta = phases(3, 20, dtype=torch.float32).detach()
    theta[1, 7] = value
    theta.requires_grad_()
    readings = order_parameters(theta, 18)
    (gradient,) = torch.autograd.grad(readings.sum(), theta)
    for found in (readings, gradient):
        assert found[1].isnan().all()
        assert found[[0, 2]].isfinite().all()


@pytest.mark.usefixtures("maker")
def test_no_token_at_all_is_no_error_to_a_kernel() -> None:
    theta = torch.zeros(0, 6, requires_grad=True)
    readings = order_parameters(theta, 4)
    assert readings.shape == (0, 12)
    assert torch.autograd.grad(readings.sum(), theta)[0].shape == (0, 6)


@pytest.mark.usefixtures("maker")
def test_a_token_has_the_same_bits_among_others_and_alone() -> None:
    theta = phases(4, 192, dtype=torch.float32)
    together = order_parameters(theta, 32)
    (gradient,) = torch.autograd.grad(together.sum(), theta)
    alone = theta.detach()[2:3].clone().requires_grad_()
    readings = order_parameters(alone, 32)
    assert torch.equal(readings[0], together[2])
    assert torch.equal(torch.autograd.grad(readings.sum(), alone)[0][0], gradient[2])


def on_cpu(made: Readout) -> str:
    return furthest_off(made, "cpu")


def test_a_kernel_passes_its_own_trial(maker: Readout) -> None:
    assert tried("stand-in", lambda: maker, on_cpu) is maker


def test_without_triton_cuda_gets_the_portable_form_and_says_why(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "kssm.readout_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(readout._MAKERS.in_use, "cuda", raising=False)
    found, why = readout.choose("cuda")
    assert isinstance(found, PortableReadout)
    assert why.startswith("the triton kernel needs triton (")
    with pytest.raises(BadUsage, match="--readout triton: the triton kernel needs triton"):
        readout.choose("cuda", "triton")


def test_a_shader_that_does_not_compile_leaves_mps_the_portable_form(monkeypatch) -> None:
    def compile_shader(_source: str) -> None:
        raise SyntaxError("program_source:9:1: error: no\nand much more")

    monkeypatch.setattr(torch.mps, "compile_shader", compile_shader)
    monkeypatch.delitem(readout._MAKERS.in_use, "mps", raising=False)
    found, why = readout.choose("mps")
    assert isinstance(found, PortableReadout)
    assert why == "the metal kernel fails here: SyntaxError: program_source:9:1: error: no"


class OffByALittle(PortableReadout):
    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        return super().forward(theta_MN, H) * 1.0001


class WrongGradient(PortableReadout):
    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        return -super().backward(theta_MN, readings_MF, d_readings_MF)


class Unfilled(PortableReadout):
    def backward(self, theta_MN: Tensor, readings_MF: Tensor, d_readings_MF: Tensor) -> Tensor:
        return super().backward(theta_MN, readings_MF, d_readings_MF) * math.nan


class PassesOverNaN(PortableReadout):
    def forward(self, theta_MN: Tensor, H: int) -> Tensor:
        return super().forward(theta_MN.nan_to_num(), H)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (OffByALittle, "readings are off by 1e-04 of the largest"),
        (WrongGradient, r"gradients are off by 2e\+00 of the largest"),
        (Unfilled, "gradients are off by nan of the largest"),
        (PassesOverNaN, "a phase that is no number goes unnoticed"),
    ],
)
def test_a_kernel_that_computes_wrongly_is_found_out_before_it_is_used(wrong: type[Readout], reason: str) -> None:
    with pytest.raises(Unavailable, match=f"the metal kernel computes wrongly here: {reason}"):
        tried("metal", wrong, on_cpu)


@pytest.mark.parametrize(("name", "device"), [("metal", "cuda"), ("triton", "mps"), ("triton", "cpu")])
def test_a_kernel_for_another_device_is_refused(name: str, device: str) -> None:
    with pytest.raises(BadUsage, match=f"the {name} kernel is for .*, and the device is {device}"):
        readout.choose(device, name)  # type: ignore[arg-type]
