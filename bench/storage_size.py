"""How many bytes a point takes after compaction (pcodec level 8), beside lz4, zlib and Parquet of the same columns.

    python bench/storage_size.py [--small]

Every row of the table is written as tablets, flushed several times, compacted into one file, and the file's bytes,
times, statistics and indexes included, are divided by the points; then all of it is read back and compared bit for bit.
lz4 and zlib (level 6) get each column, and the times, as one block of little-endian values (texts with their lengths).
Parquet: pyarrow, zstd at its own level 1 and at 9, and of its encodings (PLAIN, dictionary, BYTE_STREAM_SPLIT,
DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY, RLE) the best one for times and for values; row groups
of 1 Mi rows. pyarrow is in requirements/bench.txt; without it the Parquet column is skipped and the run is not ok.
"""

from __future__ import annotations

import io
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import lz4.block
import measuring as m
import numpy as np

from iotdb_cluster.columns import DataType, TextColumn, Values
from iotdb_cluster.storage import Store, StoreOptions
from iotdb_cluster.world import RealFileSystem

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

LIMIT_S = 900
TABLET_ROWS = 10_000
FLUSHES = 8
STATES = [b"running", b"stopped", b"starting", b"idle", b"error: code 17", b"maintenance", b"unknown", b"ok"]
ENCODINGS = {
    DataType.DOUBLE: ("PLAIN", "DICTIONARY", "BYTE_STREAM_SPLIT"),
    DataType.INT64: ("PLAIN", "DICTIONARY", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"),
    DataType.BOOLEAN: ("PLAIN", "RLE"),
    DataType.TEXT: ("PLAIN", "DICTIONARY", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"),
}
Generator = np.random.Generator


@dataclass(frozen=True)
class Row:
    """One row of the table: `columns` series of one device that share their times."""

    name: str
    kind: DataType
    columns: int
    rows: int
    jitter_ms: int  # each time is moved by a whole number of ms, evenly up to so many either way
    target: float | None  # bytes a point
    values: Callable[[Generator, int], Values]


def text_low(generator: Generator, count: int) -> TextColumn:
    return TextColumn.of([STATES[at] for at in generator.integers(0, len(STATES), count).tolist()])


def text_high(generator: Generator, count: int) -> TextColumn:
    orders = generator.integers(0, 1 << 40, count).tolist()
    users, took = generator.integers(0, 30_000, count).tolist(), generator.integers(1, 500, count).tolist()
    return TextColumn.of([b"order %d by user%05d took %d ms" % row for row in zip(orders, users, took, strict=True)])


TABLE = (
    Row("2-decimal walk, sigma 1.0, every 1 s", DataType.DOUBLE, 1, 4_000_000, 0, 1.2,
        lambda g, n: m.walk(g, n, 1.0, 2)),
    Row("2-decimal walk, sigma 1.0, 10 series, 1 s +- 10 ms", DataType.DOUBLE, 10, 1_000_000, 10, 1.2,
        lambda g, n: m.walk(g, n, 1.0, 2)),
    Row("full-precision walk, sigma 1.0, every 1 s", DataType.DOUBLE, 1, 4_000_000, 0, 7.3,
        lambda g, n: m.walk(g, n, 1.0, None)),
    Row("INT64 counter, steps Poisson(5), every 1 s", DataType.INT64, 1, 4_000_000, 0, 1.0,
        lambda g, n: np.cumsum(g.poisson(5, n)).astype(np.int64)),
    Row("INT64 counter, steps Poisson(5), 1 s +- 10 ms", DataType.INT64, 1, 2_000_000, 10, None,
        lambda g, n: np.cumsum(g.poisson(5, n)).astype(np.int64)),
    Row("BOOLEAN, flips with p = 0.01, every 1 s", DataType.BOOLEAN, 1, 4_000_000, 0, None,
        lambda g, n: np.cumsum(g.random(n) < 0.01) % 2 == 1),
    Row("TEXT, 8 states at random, every 1 s", DataType.TEXT, 1, 1_000_000, 0, None, text_low),
    Row("TEXT, an order each of about 34 bytes, every 1 s", DataType.TEXT, 1, 500_000, 0, None, text_high),
)  # fmt: skip


def raw(values: Values) -> bytes:
    if isinstance(values, TextColumn):
        return values.lengths.astype("<u4").tobytes() + values.packed()
    return values.tobytes()


def ours(row: Row, times: Any, columns: list[Values]) -> tuple[int, float]:
    """(bytes of the compacted file, nanoseconds of CPU a point that compaction took)."""
    names = tuple(f"s{at}" for at in range(row.columns))
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(RealFileSystem(), directory, StoreOptions(compaction_files_min=2))
        store.open_unit(m.UNIT, (1, 0))
        whole = list(m.tablets("root.bench.d", names, row.kind, times, columns, TABLET_ROWS))
        for number, tablet in enumerate(whole, 1):
            store.write(m.UNIT, 1, number, [tablet])
            if number % -(-len(whole) // FLUSHES) == 0 or number == len(whole):
                m.flush(store)
        seconds = m.compact(store)
        if len(store.files_of(m.UNIT)) != 1:
            raise SystemExit(f"{len(store.files_of(m.UNIT))} files after compaction")
        with store.reader(m.UNIT) as reader:
            for name, values in zip(names, columns, strict=True):
                at = 0
                for found_times, found in reader.read("root.bench.d", name, row.kind, -(1 << 63), (1 << 63) - 1):
                    part = values[at : at + len(found_times)]
                    if raw(part) != raw(found) or not np.array_equal(found_times, times[at : at + len(found_times)]):
                        raise SystemExit(f"{row.name}: what is read back differs near row {at}")
                    at += len(found_times)
                if at != row.rows:
                    raise SystemExit(f"{row.name}: {at} rows of {row.rows} came back")
        size = m.file_bytes(store)
        store.close()
    return size, seconds / (row.rows * row.columns) * 1e9


def parquet_bytes(row: Row, times: Any, columns: list[Values]) -> tuple[int, str]:
    """(bytes of the smallest file, how it was made)."""
    arrays = {"time": pyarrow.array(times)}
    for at, values in enumerate(columns):
        if isinstance(values, TextColumn):
            offsets = pyarrow.py_buffer((values.offsets - values.offsets[0]).astype(np.int32).tobytes())
            arrays[f"s{at}"] = pyarrow.StringArray.from_buffers(
                len(values), offsets, pyarrow.py_buffer(values.packed())
            )
        else:
            arrays[f"s{at}"] = pyarrow.array(values)
    table = pyarrow.table(arrays)
    forms = list(product(("PLAIN", "DELTA_BINARY_PACKED"), ENCODINGS[row.kind]))
    found = sorted((parquet_size(table, *form, 1), *form) for form in forms)
    # the level changes little between encodings: the two best ones are tried at the higher one
    found += [
        (parquet_size(table, of_times, of_values, 9), of_times, of_values) for _, of_times, of_values in found[:2]
    ]
    size, of_times, of_values = min(found)
    return size, f"{of_values}, times {of_times}, zstd {1 if found.index(min(found)) < len(forms) else 9}"


def parquet_size(table: Any, of_times: str, of_values: str, level: int) -> int:
    encodings = {"time": of_times}
    dictionary = table.column_names[1:] if of_values == "DICTIONARY" else []
    if of_values != "DICTIONARY":
        encodings.update(dict.fromkeys(table.column_names[1:], of_values))
    sink = io.BytesIO()
    parquet.write_table(
        table, sink, compression="zstd", compression_level=level, use_dictionary=dictionary,
        column_encoding=encodings, row_group_size=1 << 20, dictionary_pagesize_limit=1 << 24,
    )  # fmt: skip
    return len(sink.getvalue())


def measure(row: Row, small: bool) -> dict[str, Any]:
    rows = max(200_000, row.rows // 10) if small else row.rows
    row = Row(row.name, row.kind, row.columns, rows, row.jitter_ms, row.target, row.values)
    generator = np.random.default_rng(m.SEED)
    times = m.START_MS + np.arange(rows) * 1_000
    if row.jitter_ms:
        times = times + generator.integers(-row.jitter_ms, row.jitter_ms + 1, rows)
    columns = [row.values(generator, rows) for _ in range(row.columns)]
    points = rows * row.columns
    size, nanoseconds = ours(row, times, columns)
    blocks = [times.tobytes(), *(raw(values) for values in columns)]
    found: dict[str, Any] = {
        "row": row.name,
        "points": points,
        "ours": round(size / points, 4),
        "target": row.target,
        "lz4": round(sum(len(lz4.block.compress(block)) for block in blocks) / points, 4),
        "zlib": round(sum(len(zlib.compress(block, 6)) for block in blocks) / points, 4),
        "raw": round(sum(map(len, blocks)) / points, 4),
        "compaction_ns_per_point": round(nanoseconds, 1),
    }
    if pyarrow is not None:
        other, how = parquet_bytes(row, times, columns)
        found.update(parquet=round(other / points, 4), parquet_form=how)
    return found


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    rows, missed = [], []
    for row in TABLE:
        found = measure(row, small)
        rows.append(found)
        print(f"{row.name}: {found['ours']} bytes a point; Parquet {found.get('parquet', 'skipped')}", flush=True)
        if row.target is not None and found["ours"] > row.target:
            missed.append(f"{row.name}: {found['ours']} bytes a point, the target is {row.target}")
        others = {name: found[name] for name in ("lz4", "zlib", "parquet") if name in found}
        missed += [f"{row.name}: {name} takes {size}" for name, size in others.items() if size <= found["ours"]]
    figures: dict[str, Any] = {"rows": rows, "victoriametrics_2_decimal_walk": 1.3}
    if pyarrow is None:
        figures["skipped"] = "pyarrow is not installed: pip install -r requirements/bench.txt"
        missed.append("Parquet was not compared")
    m.finish("storage_size", began, missed, figures)


if __name__ == "__main__":
    main()
