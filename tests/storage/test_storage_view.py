"""The viewer of chunk files, and that reads touch only what they need."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from iotdb_cluster.columns import Column, DataType, Tablet, TextColumn, shape_of
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.simulation import SimulatedDisk
from iotdb_cluster.storage import Store, StoreOptions, UnitId, chunk_facts
from iotdb_cluster.tools.chunk_file import main
from iotdb_cluster.world import RealFileSystem

U = UnitId(1, 0)
KINDS = tuple(DataType)
NAMES = tuple(f"s{int(kind)}" for kind in KINDS)


def fill(store: Store, rows: int) -> None:
    generator = np.random.default_rng(1)
    valid = generator.random(rows) < 0.7
    columns = []
    for kind in KINDS:
        if kind is DataType.TEXT:
            columns.append(Column(kind, TextColumn.of([b"%d" % (at % 50) for at in range(rows)])))
        else:
            values = (np.cumsum(generator.normal(size=rows)).round(2) * 3).astype(kind.dtype)
            columns.append(Column(kind, values, valid if kind is DataType.FLOAT else None))
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [Tablet("root.sg.d", shape_of(NAMES, KINDS), np.arange(rows) * 1000, columns)])


@pytest.mark.parametrize("compacted", [False, True])
def test_what_is_shown_is_what_was_written(tmp_path: Path, compacted: bool, tools: Any) -> None:
    store = Store.open(RealFileSystem(), str(tmp_path), StoreOptions(compaction_files_min=1))
    fill(store, 70_000)
    tools.flush(store)
    if compacted:
        tools.compact(store)
    (info,) = store.files_of(U)
    facts = list(chunk_facts(RealFileSystem(), info.path, check=True, blocks=True))
    assert facts[0]["crc32c"] == f"{info.crc32c:08x}"
    assert facts[-1]["what"] == "checked"
    (group,) = [fact for fact in facts if fact["what"] == "row group"]
    assert (group["rows"], group["page_rows"]) == (70_000, 32_768 if compacted else 10_240)
    chunks = {fact["measurement"]: fact for fact in facts if fact["what"] == "chunk"}
    assert set(chunks) == set(NAMES)
    with store.reader(U) as reader:
        for kind in KINDS:
            chunk = chunks[f"s{int(kind)}"]
            found = list(reader.read("root.sg.d", chunk["measurement"], kind, 0, 1 << 60))
            assert chunk["cells"] == sum(len(times) for times, _ in found)
            if kind.is_numeric:
                values = np.concatenate([part for _, part in found])  # type: ignore[arg-type]  # numbers
                assert (chunk["min"], chunk["max"]) == (values.min(), values.max())
                assert chunk["sum"] == pytest.approx(values.sum(dtype=np.float64), rel=1e-6)
    blocks = [fact for fact in facts if fact["what"] == "block" and fact["of"] == "s4"]
    assert [block["count"] for block in blocks] == [1024] * 68 + [368]


def test_the_command(tmp_path: Path, tools: Any) -> None:
    store = Store.open(RealFileSystem(), str(tmp_path))
    fill(store, 2_000)
    tools.flush(store)
    (info,) = store.files_of(U)
    shown = CliRunner().invoke(main, [info.path, "--check"])
    assert shown.exit_code == 0
    assert shown.output.splitlines()[-1].startswith("checked")
    lines = CliRunner().invoke(main, [info.path, "--json"]).output.splitlines()
    assert {json.loads(line)["what"] for line in lines} == {"file", "row group", "chunk", "page"}
    data = bytearray(Path(info.path).read_bytes())
    data[100] ^= 1
    Path(info.path).write_bytes(data)
    assert CliRunner().invoke(main, [info.path]).exit_code == 0
    harmed = CliRunner().invoke(main, [info.path, "--check"])
    assert harmed.exit_code == 4
    assert "checksum" in harmed.output
    assert CliRunner().invoke(main, [str(tmp_path / "nothing")]).exit_code == 1


def test_every_flipped_bit_is_found_by_the_check(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    fill(store, 300)
    tools.flush(store)
    (info,) = store.files_of(U)
    rng = random.Random(2)
    for _ in range(150):
        offset, bit = rng.randrange(info.bytes), rng.randrange(8)
        disk.flip(info.path, offset, bit)
        with pytest.raises(CorruptData):
            list(chunk_facts(disk, info.path, check=True))
        disk.flip(info.path, offset, bit)
    list(chunk_facts(disk, info.path, check=True))


def test_reads_touch_only_the_pages_they_need(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s", StoreOptions(compaction_files_min=1))
    generator = np.random.default_rng(1)
    rows = 500_000
    names = tuple(f"s{at}" for at in range(4))
    kinds = tuple([DataType.DOUBLE] * 4)
    columns = [Column(DataType.DOUBLE, np.cumsum(generator.normal(size=rows))) for _ in names]
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [Tablet("root.sg.d", shape_of(names, kinds), np.arange(rows) * 1000, columns)])
    tools.flush(store)
    tools.compact(store)
    (info,) = store.files_of(U)
    read: list[int] = []
    plain = disk.read_data

    def counted(inode: Any, path: str, offset: int, length: int) -> bytes:
        data = plain(inode, path, offset, length)
        read.append(len(data))
        return data

    monkeypatch.setattr(disk, "read_data", counted)
    series = ("root.sg.d", "s1", DataType.DOUBLE)
    store.close()
    reopened = Store.open(disk, "/s")
    assert sum(read) < 4_096  # the manifest alone: no chunk file is looked into
    with reopened.reader(U) as reader:
        read.clear()
        whole = np.array([-(1 << 63)]), np.array([(1 << 63) - 1])
        assert reader.window_statistics(*series, *whole).count[0] == rows
        assert sum(read) < info.bytes // 100  # index, head and one description
        read.clear()
        next(iter(reader.read(*series, 100_000_000, 100_999_000)))
        assert len(read) == 2  # a page of times, one of values
        assert sum(read) < info.bytes // 40
        read.clear()
        reader.window_statistics(*series, *whole)
        assert not read
        edge = np.array([1_500_000]), np.array([400_000_000])
        assert reader.window_statistics(*series, *edge).count[0] == 398_501
        assert len(read) == 4  # two edge blocks, each in a page of times and one of values
