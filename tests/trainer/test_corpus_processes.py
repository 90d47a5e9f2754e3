"""A corpus in real processes: killed, two at once, out of disk, and with text much longer than the memory used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kssm.corpus import Corpus, open_corpus, prepare
from kssm.vocabulary import LearnPairs
from tests.trainer.scenes import PLAYS, write_scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "text")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


PREPARE = """
import sys
from pathlib import Path
from kssm.corpus import prepare
told = lambda phase, done, total: print(phase, done, flush=True)
made = prepare(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], progress=told)
print("made", made.path, "torch" in sys.modules)
"""


def preparing(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_preparing_does_not_load_torch(folder: Path, tmp_path: Path) -> None:
    with preparing(folder, tmp_path / "cache", "bytes") as process:
        output, errors = process.communicate(timeout=600)
    assert output.splitlines()[-1].endswith("False"), errors


@pytest.mark.parametrize("lines", [1, 30, 60, 85, 100, 118, 119, 120])
def test_a_kill_leaves_no_half_file_and_what_it_left_is_cleared(folder: Path, tmp_path: Path, lines: int) -> None:
    cache = tmp_path / "cache"
    with preparing(folder, cache, "bpe:400") as process:
        assert process.stdout
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
    for path in cache.glob("*.tokens") if cache.exists() else ():
        open_corpus(path)
    made = prepare(folder, cache, "bpe:400")
    assert names(cache) == [made.path.with_suffix(".tokenizer.json").name, made.path.name]


def test_two_processes_at_once_both_end_with_the_same_good_file(folder: Path, tmp_path: Path) -> None:
    processes = [preparing(folder, tmp_path / "cache", "bpe:400") for _ in range(3)]
    last = {process.communicate(timeout=600)[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(last) == 1
    open_corpus(Path(last.pop().split()[1]))
    assert len(names(tmp_path / "cache")) == 2


def test_two_threads_at_once_both_end_well(folder: Path, tmp_path: Path) -> None:
    made: list[Corpus] = []
    threads = [
        threading.Thread(target=lambda: made.append(prepare(folder, tmp_path / "cache", "bytes"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    assert [one.facts for one in made] == [made[0].facts] * 2


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
from kssm.corpus import prepare
from kssm.errors import CorpusError
try:
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), "bytes")
except CorpusError as error:
    print(error, "|", error.next_step)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert "cannot write the token file" in done.stdout
    assert "file too large | raise the file size limit" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*.tokens"))
    assert not list((tmp_path / "cache").glob(".*"))


MEASURE = """
import resource, sys
from pathlib import Path
from kssm.corpus import prepare
made = prepare(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak // (1 << 20 if sys.platform == "darwin" else 1 << 10), made.facts.train.bytes + made.facts.validation.bytes)
"""


def peak_mib(text: Path, cache: Path, spec: str) -> tuple[int, int]:
    command = [sys.executable, "-c", MEASURE, str(text), str(cache), spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    peak, size = map(int, done.stdout.split())
    return peak, size


def write_varied(path: Path, megabytes: int) -> None:
    """Real scenes over and over, each copy with its number, as one document and as many."""
    text = "".join(PLAYS[:8])[: 1 << 20]
    with path.with_suffix(".txt").open("w") as one, path.with_suffix(".jsonl").open("w") as many:
        for copy in range(megabytes):
            if copy % 2:
                one.write(f"COPY {copy}\n{text}")
            else:
                for part in range(0, len(text), 4096):
                    many.write(json.dumps({"text": f"{copy} {text[part : part + 4096]}"}) + "\n")


@pytest.mark.parametrize(("spec", "small", "large"), [("bytes", 6, 60), ("pairs.json", 2, 6)])
def test_memory_stays_flat_however_long_the_text(tmp_path: Path, spec: str, small: int, large: int) -> None:
    (tmp_path / "pairs.json").write_text(LearnPairs(600).learn(PLAYS[:1], len(PLAYS[0])).document)
    spec = str(tmp_path / spec) if spec.endswith(".json") else spec
    peaks = []
    for megabytes in (small, large):
        text = tmp_path / f"{megabytes}"
        text.mkdir()
        write_varied(text / "varied", megabytes)
        peak, size = peak_mib(text, tmp_path / "cache", spec)
        assert size > megabytes * 850_000
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 50, f"{peaks} MiB"
