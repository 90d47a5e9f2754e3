"""The README's file tree is true: every source file stands in it once, and nothing else does."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREE = re.search(r"^```\n(Makefile .*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def listed(package: str) -> Counter[str]:
    assert TREE is not None
    part = re.search(rf"^{package}/\n((?:  .*\n)+)", TREE[1], re.MULTILINE)
    assert part is not None
    names = re.findall(r"^  ([\w./]+\.(?:py|sh)(?:, [\w./]+\.(?:py|sh))*)  ", part[1], re.MULTILINE)
    return Counter(name for line in names for name in line.split(", "))


@pytest.mark.parametrize("package", ["solorun", "kssm"])
def test_the_tree_lists_every_file_once(package: str) -> None:
    top = ROOT / package
    files = [path for kind in ("*.py", "*.sh") for path in top.rglob(kind)]
    assert listed(package) == Counter(str(path.relative_to(top)) for path in files)
