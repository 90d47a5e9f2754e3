"""What a figure was measured on, as a person needs it to compare with another machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil


def described() -> str:
    """Processor, cores, SIMD, memory, system, Python, torch and its threads, in one sentence."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    system = f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else _linux()
    return (
        f"{_processor()}, {cores} cores ({os.cpu_count()} threads), {memory} GiB; {system}, {platform.machine()}; "
        f"Python {platform.python_version()}, {_torch()}"
    )


def _torch() -> str:
    try:
        import torch
    except ImportError:
        return "no torch"
    simd = torch.backends.cpu.get_cpu_capability()
    # torch has no name of its own for what every ARM core of 64 bits can.
    simd = "NEON" if simd == "DEFAULT" and platform.machine() in ("arm64", "aarch64") else simd
    return f"torch {torch.__version__} with {torch.get_num_threads()} threads, SIMD {simd}"


def _processor() -> str:
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() or platform.processor()
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.exists() else None
    return found[1].strip() if found else platform.processor() or "unknown processor"


def _linux() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, kernel {platform.release()}"
