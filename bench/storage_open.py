"""How long a store of 10,000 chunk files takes to open, and how much of them that reads.

    python bench/storage_open.py [--small]

100 units of 100 files each, every file with 10 rows of 2 series of 3 devices; they are made without syncing. Opening
counts all calls and bytes through the file system; target: under 3 s (wall clock, files in the page cache, best of
three), and not a tenth of the files' bytes. Then one series of one unit is read, which opens that unit's files.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import measuring as m
import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.world import File, RealFileSystem

LIMIT_S = 300
UNITS, FILES = 100, 100
OPEN_MAX_S, READ_PART = 3.0, 10
ALL = (-(1 << 63), (1 << 63) - 1)


class _Counted:
    """A file that counts what is read of it, and does not sync."""

    def __init__(self, file: File, counts: dict[str, int], what: str) -> None:
        self._file, self._counts, self._what = file, counts, what

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, offset: int, length: int) -> bytes:
        data = self._file.read(offset, length)
        self._counts[f"{self._what}_bytes"] += len(data)
        return data

    def sync(self) -> None:
        pass


class CountingFiles(RealFileSystem):
    """The real file system without syncs, counting."""

    def __init__(self) -> None:
        self.counts = {"opens": 0, "chunk_bytes": 0, "manifest_bytes": 0}

    def open(self, path: str, *, create: bool = False) -> Any:
        self.counts["opens"] += 1
        what = "chunk" if path.endswith(".chunk") else "manifest"
        return _Counted(super().open(path, create=create), self.counts, what)

    def sync_directory(self, path: str) -> None:
        pass


def build(files: CountingFiles, directory: str, units: int, per_unit: int) -> int:
    """Bytes of all chunk files."""
    store = Store.open(files, directory, StoreOptions())
    shape = shape_of(("s0", "s1"), (DataType.DOUBLE, DataType.DOUBLE))
    values = Column(DataType.DOUBLE, np.arange(10) / 4)
    for partition in range(units):
        store.open_unit(UnitId(1, partition), (1, 0))
    for number in range(1, per_unit + 1):
        times = m.START_MS + number * 10_000 + np.arange(10) * 1_000
        for partition in range(units):
            blocks = [Tablet(f"root.bench.d{device}", shape, times, [values, values]) for device in range(3)]
            store.write(UnitId(1, partition), 1, number, blocks)
        m.flush(store)
    size = sum(info.bytes for unit in store.units() for info in store.files_of(unit))
    store.close()
    return size


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    units, per_unit = (10, 10) if small else (UNITS, FILES)
    with tempfile.TemporaryDirectory() as directory:
        size = build(CountingFiles(), directory, units, per_unit)
        print(f"made {units * per_unit} files of {size} bytes in {time.perf_counter() - began:.1f} s", flush=True)
        best, counts = float("inf"), {}
        for _ in range(3):
            files = CountingFiles()
            start = time.perf_counter()
            store = Store.open(files, directory)
            if (seconds := time.perf_counter() - start) < best:
                best, counts = seconds, dict(files.counts)
            if len(store.units()) != units or store.corrupt:
                raise SystemExit(f"{len(store.units())} units are open, {len(store.corrupt)} damaged")
            start = time.perf_counter()
            with store.reader(UnitId(1, units - 1)) as reader:
                rows = sum(len(times) for times, _ in reader.read("root.bench.d1", "s1", DataType.DOUBLE, *ALL))
            first_read = time.perf_counter() - start
            if rows != per_unit * 10:
                raise SystemExit(f"{rows} rows came back")
            store.close()
    figures = {
        "files": units * per_unit,
        "file_bytes": size,
        "open_s": round(best, 3),
        "opening": counts,
        "first_read_of_a_unit_s": round(first_read, 3),
    }
    missed = []
    if not small and best > OPEN_MAX_S:
        missed.append(f"opening takes {best:.2f} s, the target is {OPEN_MAX_S}")
    if counts["chunk_bytes"] * READ_PART > size:
        missed.append(f"opening reads {counts['chunk_bytes']} of {size} bytes of chunk files")
    m.finish("storage_open", began, missed, figures)


if __name__ == "__main__":
    main()
