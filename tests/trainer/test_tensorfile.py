"""A tensor file comes back bit by bit, or is named as damaged; nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kssm.atomicfile import replacing
from kssm.errors import CheckpointError
from kssm.tensorfile import Damaged, read_facts, read_tensors, write_tensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
ZEROS = b"0" * 64
OPENING = b'{"__metadata__":{"digest":"'


def write(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any] | None = None) -> str:
    with replacing(path) as file:
        return write_tensors(file, tensors, facts or {})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = int(torch.tensor(shape).prod()) * dtype.itemsize
    data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    if not size:
        return torch.empty(shape, dtype=dtype)
    return (data % 2 if dtype is torch.bool else data).view(dtype).reshape(shape)


NAMES = (
    st.text(min_size=1, max_size=12)
    .filter(lambda name: name != "__metadata__")
    .map(lambda name: name.encode(errors="replace").decode())
)
FACTS = st.dictionaries(
    st.text(), st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.dictionaries(NAMES, any_tensor(), max_size=5), facts=FACTS)
def test_any_tensors_and_facts_come_back_bit_by_bit(
    tmp_path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]
) -> None:
    path = tmp_path / "any.safetensors"
    digest = write(path, tensors, facts)
    found, told, again = read_tensors(path)
    assert told == read_facts(path) == facts
    assert again == digest
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


def sample() -> dict[str, torch.Tensor]:
    return {
        "model.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "model.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "optimizer.weight.step": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
    }


def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = write(path, sample(), {"step": 3})
    loaded = safetensors.torch.load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in sample().items())
    with safetensors.safe_open(path, "pt") as opened:
        assert json.loads(opened.metadata()["facts"]) == {"step": 3}
        assert opened.metadata()["digest"] == digest


def test_the_digest_is_sha256_of_the_file_with_its_own_place_in_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = write(path, sample())
    content = path.read_bytes()
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), ZEROS)).hexdigest() == digest


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(12.0).reshape(3, 4).t(),
        lambda: torch.arange(10.0)[::3],
        lambda: torch.ones(2, 2, requires_grad=True),
        lambda: torch.ones(1).expand(5),
    ],
    ids=["transposed", "strided", "with gradient", "expanded"],
)
def test_a_tensor_however_it_lies_in_memory_is_saved(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    write(tmp_path / "a.safetensors", {"x": make()})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")[0]["x"], make())


def test_a_file_cut_at_any_length_is_named_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, sample(), {"step": 3})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        for read in (read_tensors, read_facts):
            with pytest.raises(Damaged, match=str(path)):
                read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(Damaged):
        read_facts(path)


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_a_flip_of_any_byte_is_named_damaged(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "a.safetensors"
    write(path, sample(), {"step": 3})
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        with pytest.raises(Damaged):
            read_tensors(path)


def forge(path: Path, header: bytes, data: bytes = b"") -> None:
    """A file whose digest is right, whatever its header says."""
    content = len(header).to_bytes(8, "little") + header + data
    path.write_bytes(content.replace(ZEROS, hashlib.sha256(content).hexdigest().encode(), 1))


def header(entries: str, facts: str = '"{}"') -> bytes:
    return OPENING + ZEROS + b'","facts":' + facts.encode() + b"}" + entries.encode() + b"}"


def entry(dtype: str = '"U8"', shape: str = "[4]", offsets: str = "[0,4]", name: str = "x") -> str:
    return f',"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def test_a_forged_file_that_is_right_is_read(tmp_path: Path) -> None:
    forge(tmp_path / "a", header(entry()), b"abcd")
    assert read_tensors(tmp_path / "a")[0]["x"].tolist() == list(b"abcd")


WRONG = {
    "offsets beyond the file": header(entry(shape="[9]", offsets="[0,9]")),
    "offsets that leave a gap": header(entry(shape="[3]", offsets="[1,4]")),
    "offsets that leave a rest": header(entry(shape="[3]", offsets="[0,3]")),
    "offsets that overlap": header(entry() + entry(name="y", shape="[4]", offsets="[0,4]")),
    "offsets backwards": header(entry(shape="[4]", offsets="[4,0]")),
    "negative offsets": header(entry(shape="[4]", offsets="[-4,0]")),
    "a negative shape": header(entry(shape="[-2,-2]")),
    "a shape of truths": header(entry(shape="[true,4]")),
    "a shape of fractions": header(entry(shape="[4.0]")),
    "a shape as text": header(entry(shape='"4"')),
    "a shape too large": header(entry(shape="[0,99999999999999999999]", offsets="[0,0]")),
    "an impossible shape": header(entry() + entry(name="y", shape=f"[0,{2**62},{2**62}]", offsets="[4,4]")),
    "very many dimensions": header(entry(shape="[" + "1," * 99 + "4]")),
    "three offsets": header(entry(offsets="[0,4,8]")),
    "an unknown type": header(entry(dtype='"F128"')),
    "a type of very many letters": header(entry(dtype='"' + "x" * 70_000 + '"')),
    "a type as list": header(entry(dtype="[]")),
    "no type": header(',"x":{"shape":[4],"data_offsets":[0,4]}'),
    "an entry as text": header(',"x":"abcd"'),
    "a name twice": header(entry() + entry(shape="[0]", offsets="[4,4]")),
    "facts as a number": header(entry(), facts="7"),
    "facts that are no object": header(entry(), facts='"[]"'),
    "facts that are no JSON": header(entry(), facts='"{"'),
    "deep nesting": header(',"x":' + "[" * 100_000 + "]" * 100_000),
    "a long number": header(entry(shape="[" + "9" * 5000 + "]")),
    "no metadata": b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}' + b" " * 100,
    "no UTF-8": header(entry(name="x")).replace(b'"x"', b'"\xff"'),
    "no digest": OPENING + "é".encode() * 32 + b'","facts":"{}"}' + entry().encode() + b"}",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_forged_header_is_named_damaged(tmp_path: Path, wrong: str) -> None:
    forge(tmp_path / "a", WRONG[wrong], b"abcd")
    with pytest.raises(Damaged) as caught:
        read_tensors(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path)), "words, and not what the file is full of"


def test_a_truth_value_that_is_neither_is_named_damaged(tmp_path: Path) -> None:
    forge(tmp_path / "a", header(entry(dtype='"BOOL"')), b"\0\1\2\1")
    with pytest.raises(Damaged, match="neither true nor false"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 101])
def test_a_header_longer_than_the_file_allocates_nothing(tmp_path: Path, length: int) -> None:
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(Damaged, match="cannot have"):
        read_tensors(tmp_path / "a")


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_payload_is_not_executed(tmp_path: Path) -> None:
    touched = tmp_path / "executed"
    torch.save({"model": Payload(touched)}, tmp_path / "a.safetensors")
    with pytest.raises(Damaged):
        read_tensors(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    forge(tmp_path / "b.safetensors", header(entry(shape=f"[{len(data)}]", offsets=f"[0,{len(data)}]")), data)
    assert bytes(read_tensors(tmp_path / "b.safetensors")[0]["x"].tolist()) == data
    assert not touched.exists()
    torch.load((tmp_path / "a.safetensors").rename(tmp_path / "a.pt"), weights_only=False)
    assert touched.exists(), "the payload would have worked"


def test_what_the_format_has_no_word_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for tensors, facts in [
        ({"x": torch.zeros(2, dtype=torch.complex64)}, {}),
        ({"__metadata__": torch.zeros(2)}, {}),
        ({}, {"loss": float("nan")}),
        ({}, {"when": object()}),
    ]:
        with pytest.raises(CheckpointError):
            write(tmp_path / "a.safetensors", tensors, facts)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read") as caught:
            read_tensors(path)
        assert not isinstance(caught.value, Damaged)


COPYLESS = """
import resource, sys
from pathlib import Path
import torch
from kssm.atomicfile import replacing
from kssm.tensorfile import write_tensors
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)
tensors = {"x": torch.ones(48 << 20)}
before = peak()
with replacing(Path(sys.argv[1])) as file:
    write_tensors(file, tensors, {})
print(peak() - before)
"""


def test_saving_makes_no_copy_of_a_tensor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COPYLESS, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout) < 48, "MiB more for a tensor of 192 MiB"
