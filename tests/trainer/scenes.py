"""Real text for tests: whole plays, and scenes cut from them."""

from __future__ import annotations

from pathlib import Path

from kssm.texts import text_source

PLAYS = ["".join(piece.text for piece in file.pieces()) for file in text_source(None).files[:12]]


def write_scenes(folder: Path) -> Path:
    """Forty documents: ten scenes from the beginning of each of four plays."""
    folder.mkdir()
    for number, play in enumerate(PLAYS[:4]):
        size = len(play) // 40
        for part in range(10):
            (folder / f"{number}-{part}.txt").write_text(play[part * size : (part + 1) * size])
    return folder
