"""What stands in a chunk file, for people; and whether it is whole. It only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from crc32c import crc32c

from iotdb_cluster.columns import DataType, TextColumn
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import MIB
from iotdb_cluster.storage import chunk_layout as layout
from iotdb_cluster.storage.chunk_reader import Cache, ChunkFile, Group
from iotdb_cluster.storage.codec_ids import Codec
from iotdb_cluster.storage.durable import disk_faults
from iotdb_cluster.storage.segments import BLOCK, block_statistics, from_bits
from iotdb_cluster.storage.types import FileInfo
from iotdb_cluster.world import FileSystem

__all__ = ["chunk_facts"]

NOWHERE = (0, 0)


def chunk_facts(files: FileSystem, path: str, *, check: bool = False, blocks: bool = False) -> Iterator[dict[str, Any]]:
    """The file, its row groups, their chunks and pages, front to back; with `blocks` each statistics block.

    With `check` every page is decoded, and times and statistics are compared with what it holds. CorruptData where
    something is damaged, SystemFault where it cannot be read.
    """
    with disk_faults(path):
        raw = files.open(path)
        try:
            size, crc = raw.size(), 0
            for offset in range(0, size, MIB):
                crc = crc32c(raw.read(offset, MIB), crc)
        finally:
            raw.close()
    file = ChunkFile(files, FileInfo(path, path, size, crc, NOWHERE, NOWHERE, NOWHERE, 0, 0), Cache(64 * MIB))
    try:
        devices = file.devices()
        groups = sorted((number, device) for device, numbers in devices.items() for number in numbers)
        yield {
            "what": "file",
            "path": path,
            "bytes": size,
            "crc32c": f"{crc:08x}",
            "version": layout.VERSION,
            "devices": len(devices),
            "row_groups": len(groups),
        }
        for number, device in groups:
            yield from _group_facts(file, file.group(number), device, check, blocks)
        if check:
            yield {"what": "checked", "path": path}
    finally:
        file.close()


def _group_facts(file: ChunkFile, group: Group, device: str, check: bool, blocks: bool) -> Iterator[dict[str, Any]]:
    first, last = file.group_times(group.number)
    yield {
        "what": "row group",
        "number": group.number,
        "device": device,
        "rows": group.rows,
        "page_rows": group.rows_of_page,
        "first_time": first,
        "last_time": last,
        "first_write": group.low,
        "last_write": group.high,
        "columns": len(group.places),
    }
    for number, place in enumerate(group.time_pages):
        yield _page_fact("times", number, place)
    if check:
        _check_times(file, group, first, last)
    for (name, kind), at in group.places.items():
        index = file.column(group, at)
        used = index.blocks[index.blocks["count"] > 0]
        yield {
            "what": "chunk",
            "measurement": name,
            "type": kind.name,
            "cells": int(used["count"].sum()),
            "bytes": sum(place[1] for place in (*index.pages, *index.bitmaps)),
            **_statistics(kind, used),
        }
        for number, (page, bitmap) in enumerate(zip(index.pages, index.bitmaps, strict=True)):
            yield _page_fact(name, number, page)
            if bitmap[1]:
                yield _page_fact(f"{name} (bitmap)", number, bitmap)
        if blocks:
            for number in range(len(index.blocks)):
                one = index.blocks[number : number + 1]
                if one["count"][0]:
                    yield {"what": "block", "of": name, "number": number, **_statistics(kind, one)}
        if check:
            _check_column(file, group, at, (name, kind))


def _page_fact(of: str, number: int, place: tuple[int, ...]) -> dict[str, Any]:
    offset, length, crc, count, codec, version, _ = place
    name = Codec(codec).name if codec in list(Codec) else str(codec)
    fact: dict[str, Any] = {"what": "page", "of": of, "number": number, "offset": offset, "bytes": length}
    return {**fact, "cells": count, "codec": name, "codec_version": version, "crc32c": f"{crc:08x}"}


def _statistics(kind: DataType, blocks: Any) -> dict[str, Any]:
    """Of these blocks together; none of them is empty."""
    if not len(blocks):
        return {}
    found: dict[str, Any] = {
        "count": int(blocks["count"].sum()),
        "first_time": int(blocks["first_time"][0]),
        "last_time": int(blocks["last_time"][-1]),
    }
    if kind is not DataType.TEXT:
        found["first"] = from_bits(kind, blocks["first"])[0].item()
        found["last"] = from_bits(kind, blocks["last"])[-1].item()
    if kind.is_numeric:
        found["min"] = np.fmin.reduce(from_bits(kind, blocks["min"])).item()
        found["max"] = np.max(from_bits(kind, blocks["max"])).item()
        found["sum"] = float(blocks["sum_hi"].sum())
    return found


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_times(file: ChunkFile, group: Group, first: int, last: int) -> None:
    times = np.concatenate([file.times(group, page) for page in range(len(group.time_pages))])
    block_rows = group.rows_of_page // group.blocks_of_page
    starts = np.arange(0, len(times), block_rows)
    ends = np.append(starts[1:], len(times)) - 1
    ascending = bool((times[1:] > times[:-1]).all()) and (int(times[0]), int(times[-1])) == (first, last)
    if not ascending or not (
        np.array_equal(times[starts], group.first_times) and np.array_equal(times[ends], group.last_times)
    ):
        raise CorruptData(f"{file.info.path}: the times of row group {group.number} are not what its head says")


def _check_column(file: ChunkFile, group: Group, place: int, key: tuple[str, DataType]) -> None:
    name, kind = key
    index = file.column(group, place)
    block_rows = group.rows_of_page // group.blocks_of_page
    for page in range(len(group.time_pages)):
        begin = page * group.blocks_of_page
        stored = index.blocks[begin : begin + group.blocks_of_page]
        expected = np.zeros(len(stored), BLOCK)
        column = file.cells(group, place, kind, page)
        if column is not None:
            times, values = file.times(group, page), column.values
            there = np.flatnonzero(column.mask())
            begins = np.searchsorted(there, np.arange(0, len(times), block_rows))
            used = np.flatnonzero(np.diff(begins, append=len(there)))
            cells = values[there]
            matrix = None if isinstance(cells, TextColumn) else np.ascontiguousarray(cells)[None, :]
            expected[used] = block_statistics(kind, matrix, times[there], begins[used])[0]
        for field in BLOCK.names or ():
            counted = stored["count"] > 0
            if not np.array_equal(stored[field][counted], expected[field][counted], equal_nan=field.startswith("sum")):
                raise CorruptData(
                    f"{file.info.path}: {field} of {name} in page {page} of row group {group.number} is not what the"
                    " page holds"
                )
        if not np.array_equal(stored["count"], expected["count"]):
            raise CorruptData(
                f"{file.info.path}: the count of {name} in page {page} of row group {group.number} differs"
            )
