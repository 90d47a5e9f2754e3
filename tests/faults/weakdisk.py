"""A file system in memory that loses what was not synced when its power is cut: `python3 -m tests.faults.weakdisk DIR`.

Bytes of a file are kept by an fsync of that file, names by an fsync of their directory, and nothing else is. Written
into the file `.power` at its root: `off N` cuts the power within the Nth change from now on (each call then fails with
EIO), `on` brings back what was kept.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import mfusepy as fuse

POWER = "/.power"


@dataclass(slots=True)
class _File:
    """A file, or a directory where `names` is one; `kept` and `kept_names` are what a cut leaves."""

    mode: int
    number: int
    data: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    names: dict[str, _File] | None = None
    kept_names: dict[str, _File] = field(default_factory=dict)
    changed: float = field(default_factory=time.time)

    def restore(self, seen: set[int]) -> None:
        """Be what the cut has left, and all below it."""
        self.data = bytearray(self.kept)
        if self.names is not None and self.number not in seen:
            seen.add(self.number)
            self.names = dict(self.kept_names)
            for file in self.names.values():
                file.restore(seen)


class WeakDisk(fuse.Operations):  # type: ignore[misc]
    """See the module."""

    use_ns = False

    def __init__(self) -> None:
        self._count = 1
        self._root = _File(stat.S_IFDIR | 0o755, 1, names={})
        self._open: dict[int, _File] = {}
        self._left: int | None = None
        self._is_on = True

    def _changes(self) -> None:
        """One more change: the one that the power is cut within is not carried out, and none after it."""
        if not self._is_on:
            raise fuse.FuseOSError(errno.EIO)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._is_on, self._left = False, None
                raise fuse.FuseOSError(errno.EIO)

    def _look(self, path: str) -> _File:
        if not self._is_on:
            raise fuse.FuseOSError(errno.EIO)
        found = self._root
        for part in filter(None, path.split("/")):
            below = found.names.get(part) if found.names is not None else None
            if below is None:
                raise fuse.FuseOSError(errno.ENOENT)
            found = below
        return found

    def _above(self, path: str) -> tuple[dict[str, _File], str]:
        place, _, name = path.rpartition("/")
        above = self._look(place)
        if above.names is None:
            raise fuse.FuseOSError(errno.ENOTDIR)
        return above.names, name

    def _new(self, path: str, mode: int, names: dict[str, _File] | None = None) -> _File:
        self._changes()
        self._count += 1
        above, name = self._above(path)
        above[name] = made = _File(mode, self._count, names=names)
        return made

    def _handle(self, file: _File) -> int:
        number = max(self._open, default=0) + 1
        self._open[number] = file
        return number

    def _opened(self, path: str, fh: int | None) -> _File:
        return self._open[fh] if fh in self._open else self._look(path)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == POWER:
            return {"st_mode": stat.S_IFREG | 0o666, "st_nlink": 1, "st_size": 0}
        file = self._opened(path, fh)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), file.changed)
        return {
            "st_mode": file.mode, "st_nlink": 1, "st_size": len(file.data), "st_ino": file.number,
            "st_uid": os.getuid(), "st_gid": os.getgid(), "st_blocks": -(-len(file.data) // 512), **times,
        }  # fmt: skip

    def readdir(self, path: str, _fh: int) -> list[str]:
        return [".", "..", *(self._look(path).names or {})]

    def opendir(self, path: str) -> int:
        return self._handle(self._look(path))

    def releasedir(self, _path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    def open(self, path: str, flags: int) -> int:
        if path == POWER:
            return 0
        file = self._look(path)
        if flags & os.O_TRUNC:
            self._changes()
            file.data.clear()
        return self._handle(file)

    def create(self, path: str, mode: int, _info: Any = None) -> int:
        return self._handle(self._new(path, stat.S_IFREG | stat.S_IMODE(mode)))

    def release(self, _path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return b"" if path == POWER else bytes(self._opened(path, fh).data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == POWER:
            self._switch(data.decode().split())
            return len(data)
        self._changes()
        file = self._opened(path, fh)
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + len(data)] = data
        file.changed = time.time()
        return len(data)

    def _switch(self, words: list[str]) -> None:
        if words[0] == "off":
            self._left = int(words[1])
            return
        self._left, self._is_on = None, True
        self._root.restore(set())

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if path == POWER:
            return 0
        self._changes()
        data = self._opened(path, fh).data
        del data[length:]
        data.extend(bytes(length - len(data)))
        return 0

    def fsync(self, path: str, _only_data: int, fh: int) -> int:
        self._changes()
        file = self._opened(path, fh)
        file.kept = bytes(file.data)
        return 0

    def fsyncdir(self, path: str, _only_data: int, _fh: int) -> int:
        self._changes()
        file = self._look(path)
        file.kept_names = dict(file.names or {})
        return 0

    def rename(self, old: str, new: str, *_flags: int) -> int:
        self._changes()
        before, name = self._above(old)
        after, final = self._above(new)
        after[final] = before.pop(name)
        return 0

    def link(self, target: str, source: str) -> int:
        self._changes()
        above, name = self._above(target)
        if name in above:
            raise fuse.FuseOSError(errno.EEXIST)
        above[name] = self._look(source)
        return 0

    def unlink(self, path: str) -> int:
        self._changes()
        above, name = self._above(path)
        del above[name]
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._new(path, stat.S_IFDIR | stat.S_IMODE(mode), names={})
        return 0

    def rmdir(self, path: str) -> int:
        return self.unlink(path)

    def chmod(self, path: str, mode: int) -> int:
        file = self._look(path)
        file.mode = stat.S_IFMT(file.mode) | stat.S_IMODE(mode)
        return 0

    def utimens(self, path: str, times: tuple[float, float] | None = None) -> int:
        self._look(path).changed = times[1] if times else time.time()
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20,
                "f_namemax": 255}  # fmt: skip


if __name__ == "__main__":
    # Nothing is remembered in the kernel: what a cut has undone must not be seen any more.
    fuse.FUSE(
        WeakDisk(), sys.argv[1], foreground=True, nothreads=True, direct_io=True, attr_timeout=0, entry_timeout=0,
        negative_timeout=0, fsname="weakdisk",
    )  # fmt: skip
