"""What a person said on the command line. Imports nothing heavy: it is made before the lock is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kssm.config import ModelName, Precision, ReadoutName, ScanName, Size


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person said on the command line.

    Args:
        model: which trainer.
        size: preset; None when not said.
        training: fields of TrainConfig that were said.
        shape: fields of ModelConfig that were said (bistable, published).
        text: file or folder to learn from; None for the embedded text, or the one of the checkpoint.
        vocabulary: tokenizer; None when not said.
        device: auto, cuda, mps or cpu.
        precision: auto, float32 or bfloat16.
        readout: who computes the readout of v3's oscillators, as in kssm.readout.
        scan: who computes the scan of v4's oscillators, as in kssm.scan.
        resume: there must be a checkpoint to continue.
        fresh: archive what is there and start anew.
        disk_wait_s: how long to wait for room on a full disk before the run ends.
    """

    model: ModelName
    size: Size | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    text: Path | None = None
    vocabulary: str | None = None
    device: str = "auto"
    precision: Precision = "auto"
    readout: ReadoutName = "auto"
    scan: ScanName = "auto"
    resume: bool = False
    fresh: bool = False
    disk_wait_s: float = 86400.0
