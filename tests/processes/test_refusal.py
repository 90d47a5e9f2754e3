"""A second start is refused at once, and leaves every file of the live run as it was."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kssm.cli import main
from kssm.device import available
from tests.processes.conftest import QUICK, ROOT, Trainers, progress_of, until

FLAGS = (*QUICK, "--max-steps", "100000", "--save-interval", "100000", "--eval-interval", "100000")


def test_a_second_start_is_refused_before_torch_is_imported(trainers: Trainers, tmp_path: Path) -> None:
    live = trainers.start(*FLAGS, "--log-interval", "1000000", "--output-dir", str(tmp_path))
    until(lambda: (beat := progress_of(tmp_path)) is not None and beat.step > 3)
    (tmp_path / "training.pid").write_text(f"{live.pid}\n")
    before = _untouched(tmp_path)
    costs, bare = [], []
    for _ in range(3):
        began = _spent()
        subprocess.run([sys.executable, "-c", ""], check=True)
        bare.append(_spent() - began)
        began = _spent()
        command = [sys.executable, "-X", "importtime", "kssm/train_kssm_v3.py", "--output-dir", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
        costs.append(_spent() - began)
        assert second.returncode == 3
        told = [line for line in second.stderr.splitlines() if not line.startswith("import time:")]
        text = "\n".join(told)
        assert f"held by PID {live.pid}" in text
        assert "at step" in text
        assert "next:" in text
        assert "Traceback" not in text
        assert not any(line.split("|")[-1].strip() == "torch" for line in second.stderr.splitlines())
    assert _untouched(tmp_path) == before
    assert live.poll() is None
    print(f"refused for {min(costs):.3f} s of processor time, an empty program costs {min(bare):.3f} s")
    assert min(costs) < 30 * min(bare), "loading torch costs what 150 empty programs do"


def _spent() -> float:
    """Processor seconds of all children that have ended: what else the machine does is not in them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _untouched(directory: Path) -> dict[str, tuple[int, bytes]]:
    names = ("training.log", "training.pid", "training.lock", "training.owner.json", "run.json", "events.jsonl")
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name in names if (path := directory / name).exists()}


def test_the_supervisor_is_refused_as_quickly(trainers: Trainers, tmp_path: Path) -> None:
    trainers.start(*FLAGS, "--output-dir", str(tmp_path))
    until(lambda: (tmp_path / "training.owner.json").exists())
    command = [sys.executable, "-m", "solorun", "start", str(tmp_path), "--", "true"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert refused.returncode == 3
    assert "solorun stop" in refused.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="macOS is not asked for CUDA")
def test_p24_a_trainer_by_hand_does_not_share_a_gpu_unless_told_to(trainers: Trainers, tmp_path: Path) -> None:
    # No GPU is here: `nvidia-smi` is a stand-in that names one device, and a process of this test as its user.
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    other = trainers.spawn([sys.executable, "-c", "import time; time.sleep(600)"])
    answers = f"*-gpu*) echo 0, GPU-aa, H100, 81559, 9;; *) echo GPU-aa, {other.pid}, 9;;"
    smi.write_text(f"#!/bin/sh\ncase $1 in {answers} esac\n")
    smi.chmod(0o755)
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**trainers.environment, "PATH": path, "SOLORUN_SHARE_ACCELERATOR": ""}
    words = (*QUICK, "--max-steps", "2", "--device", "cuda", "--output-dir", str(tmp_path / "mine"))
    refused = trainers.start(*words, env=environment)
    said = refused.communicate(timeout=600)[0]
    assert refused.returncode == 4, said
    assert f"kssm: 9.0 MiB of cuda 0 (H100) is used by PID {other.pid} " in said
    assert "or add --share-accelerator" in said
    assert "Traceback" not in said + (tmp_path / "mine" / "training.log").read_text()
    assert not (tmp_path / "mine" / "training.lock").exists()
    allowed = trainers.start(*words, "--share-accelerator", env=environment)
    said = allowed.communicate(timeout=600)[0]
    assert "is used by" not in said
    assert allowed.returncode == (0 if "cuda" in available() else 2), said


def test_an_empty_output_directory_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["train", "v3", "--output-dir", "", "--max-steps", "1"])
    assert left.value.code == 2
    assert "variable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
