"""Flipped bits in every kind of file: each is noticed, or provably harmless; none gives a wrong value.

    python tests/damage/flips.py --n 2000 [--kind chunk] [--seed 1]

A flip is *noticed* where what reads the file raises CorruptData (or lists the unit as damaged), *harmless* where all
that can be read is what it was before, to the last bit: state, digests of all points, statistics of all windows.
Anything else fails. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from iotdb_cluster.cluster.log import open_identity, set_identifier
from iotdb_cluster.columns import Column, DataType, Tablet, TextColumn, shape_of
from iotdb_cluster.data import CreateSeries, DataGroup, Header, ListPartition, OpenUnit, Own, encode, encode_insert
from iotdb_cluster.errors import SystemFault
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import SeriesSpec
from iotdb_cluster.simulation.disk import SimulatedDisk

TESTS = Path(__file__).parents[1]
GROUP, SLOT, ROWS = 5, 40, 3_000
DEVICE = "root.sg.d"
KINDS = ("chunk", "compacted chunk", "manifest", "checkpoint", "schema", "log segment", "identity", "incarnation")
SERIES = {
    "walk": DataType.DOUBLE,
    "counter": DataType.INT64,
    "plain": DataType.FLOAT,
    "steps": DataType.INT32,
    "state": DataType.BOOLEAN,
    "words": DataType.TEXT,
    "texts": DataType.TEXT,
}

Snapshot = dict[str, bytes]


def load(path: str) -> ModuleType:
    name = "iotdb_tests_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


class Subject:
    """Files on a disk, and `read()`, which opens and reads all that they hold."""

    def __init__(self, disk: SimulatedDisk, read: Callable[[], Any], close: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self.close = close
        self._read = read
        self._whole = snapshot(disk)
        self.content = read()
        self.restore()

    def restore(self) -> None:
        for path in sorted(snapshot(self.disk).keys() - self._whole.keys()):
            self.disk.remove(path)
        for path, data in self._whole.items():
            file = self.disk.open(path, create=True)
            if file.read(0, file.size()) != data:
                file.truncate(0)
                file.write(0, data)
            file.close()

    def paths(self, part: str) -> list[str]:
        return [path for path in sorted(self._whole) if part in path.rsplit("/", 1)[-1]]

    def spots(self, path: str) -> list[int]:
        """The bytes of a file, but for blocks of 4 KiB that are all zero."""
        data = self._whole[path]
        used = [at for at in range(0, len(data), 4_096) if data[at : at + 4_096].strip(b"\0")]
        return [spot for at in used for spot in range(at, min(at + 4_096, len(data)))]

    def flip(self, path: str, offset: int, bit: int) -> str:
        """ "noticed", "harmless", or what was wrong."""
        self.disk.flip(path, offset, bit)
        try:
            found = self._read()
        except SystemFault:
            return "noticed"
        finally:
            self.restore()
        return "harmless" if found == self.content else f"{path} byte {offset} bit {bit}: another content is read"


def snapshot(disk: SimulatedDisk, path: str = "") -> Snapshot:
    found: Snapshot = {}
    for name in disk.list(path or "/"):
        below = f"{path}/{name}"
        try:
            file = disk.open(below)
        except IsADirectoryError:
            found.update(snapshot(disk, below))
        else:
            found[below] = file.read(0, file.size())
    return found


# --- a data group -----------------------------------------------------------------------------------------------------


def columns(rng: np.random.Generator) -> list[Column]:
    some = rng.random(ROWS) < 0.8
    texts = [f"text {rng.integers(1 << 40)}".encode() for _ in range(ROWS)]
    words = [[b"on", b"off", b"", "später".encode()][at] for at in rng.integers(0, 4, ROWS)]
    return [
        Column(DataType.DOUBLE, rng.normal(size=ROWS).cumsum().round(2), some),
        Column(DataType.INT64, np.arange(ROWS, dtype=np.int64) * 7 + rng.integers(0, 3, ROWS)),
        Column(DataType.FLOAT, rng.normal(size=ROWS).astype(np.float32)),
        Column(DataType.INT32, (np.arange(ROWS) // 100).astype(np.int32), ~some),
        Column(DataType.BOOLEAN, rng.random(ROWS) < 0.3, some),
        Column(DataType.TEXT, TextColumn.of(words)),
        Column(DataType.TEXT, TextColumn.of(texts), some),
    ]


def new_group(disk: SimulatedDisk, seed: int) -> DataGroup:
    """A group with two files in one unit and one in another, a deletion, and a checkpoint."""
    group = DataGroup.open(1, disk, "/group")
    rng = np.random.default_rng(seed)
    shape = shape_of(tuple(SERIES), tuple(SERIES.values()))
    index = 1

    def apply(payload: bytes) -> None:
        nonlocal index
        index += 1
        result = group.apply(index, 1, payload)
        if result.error is not None:
            raise result.error

    apply(encode(Header(NO_REQUEST), Own(((0, 9_999, 1),), 1)))
    specs = tuple(SeriesSpec.default(f"{DEVICE}.{name}", kind) for name, kind in SERIES.items())
    apply(encode(Header(RequestId(1, 1, 1, 1), GROUP, SLOT, 1), CreateSeries("root.sg", specs)))
    sequence = 2
    for partition in (0, 1):
        apply(encode(Header(NO_REQUEST, GROUP, SLOT, 1, 0, partition), ListPartition(SLOT)))
        apply(encode(Header(NO_REQUEST, GROUP, SLOT, 1, 0, partition), OpenUnit(0, 0)))
        for part in range(2):
            times = np.arange(ROWS, dtype=np.int64) * 1_000 + part * 700_000 + partition * 10_000_000
            header = Header(RequestId(1, 1, sequence, 1), GROUP, SLOT, 1, 0, partition)
            apply(encode_insert(header, [Tablet(DEVICE, shape, times, columns(rng))]))
            sequence += 1
            group.checkpoint_now()
    return group


def read_group(disk: SimulatedDisk) -> Any:
    """The state, every point, and statistics in windows of several sizes; CorruptData."""
    group = DataGroup.open(1, disk, "/group")
    try:
        if group.store.corrupt:
            raise SystemFault(str(group.store.corrupt))
        found: list[Any] = [group.dump_state(), group.applied]
        for unit in group.store.units():
            with group.store.reader(unit) as reader:
                found.append((unit, reader.digest()))
                for device, name, kind in reader.series():
                    for width in (10_000_000, 1_500_000):
                        starts = np.arange(0, 20_000_000, width)
                        got = reader.window_statistics(device, name, kind, starts, starts + width - 1)
                        found.append((name, width, [bits(part) for part in all_parts(got)]))
        return found
    finally:
        group.close()


def all_parts(statistics: Any) -> list[Any]:
    seen = statistics.count > 0
    parts = [statistics.count]
    for name in statistics.__slots__[1:]:
        part = getattr(statistics, name)
        parts.append(None if part is None else part[seen])
    return parts


def bits(part: Any) -> Any:
    if part is None:
        return None
    return part.tolist() if isinstance(part, TextColumn) else np.ascontiguousarray(part).tobytes()


def group_subject(seed: int, compacted: bool) -> Subject:
    disk = SimulatedDisk(random.Random(seed))
    group = new_group(disk, seed)
    if compacted:
        from iotdb_cluster.storage import MergeRequest

        group.store.request_merge(MergeRequest.FULL)
        while (job := group.store.pick()) is not None:
            job.run()
            job.finish()
        group.store.collect()
        if any(len(group.store.files_of(unit)) != 1 for unit in group.store.units()):
            raise RuntimeError("the files were not merged")
    group.close()
    return Subject(disk, lambda: read_group(disk))


# --- the log and the identity -----------------------------------------------------------------------------------------


def log_subject(seed: int) -> Subject:
    kit = load("cluster_log/conftest.py")
    bench = kit.Bench(seed)
    generator, model = kit.Generator(random.Random(seed)), kit.Model()
    submissions = []
    for _ in range(60):
        records = generator.submission(model)
        for record in records:
            model.apply(record)
        submissions.append(records)
    bench.write(bench.open(), submissions)
    subject = Subject(bench.disk, bench.reopened, bench.close)
    if subject.content != model.replicas:
        raise RuntimeError("the log does not hold what was written to it")
    return subject


def identity_subject(seed: int) -> Subject:
    disk = SimulatedDisk(random.Random(seed), directories=("/node",))
    set_identifier(disk, "/node/log", open_identity(disk, "/node/log", ("/node/data",), disk.random), 3)

    def read() -> Any:
        return open_identity(disk, "/node/log", ("/node/data",), random.Random(1))

    return Subject(disk, read)


def subject_of(kind: str, seed: int) -> tuple[Subject, list[str]]:
    """(what is damaged, the paths of the files of that kind)."""
    if kind == "log segment":
        subject = log_subject(seed)
        return subject, [path for path in subject.paths("") if path.startswith("/node/log/")]
    if kind in ("identity", "incarnation"):
        subject = identity_subject(seed)
        return subject, subject.paths(kind)
    subject = group_subject(seed, kind == "compacted chunk")
    names = {"chunk": ".chunk", "compacted chunk": ".chunk", "checkpoint": "state-", "schema": "schema-"}
    return subject, subject.paths(names.get(kind, kind))


def run_kind(kind: str, count: int, seed: int) -> dict[str, Any]:
    """{"noticed", "harmless", "wrong": examples} of so many flips, spread over the files of a kind."""
    subject, paths = subject_of(kind, seed)
    rng = random.Random(f"{kind}:{seed}")
    spots = {path: found for path in paths if (found := subject.spots(path))}
    paths = list(spots)
    found: dict[str, Any] = {"noticed": 0, "harmless": 0, "wrong": []}
    for number in range(count):
        path = paths[number % len(paths)]
        outcome = subject.flip(path, rng.choice(spots[path]), rng.randrange(8))
        if outcome in found:
            found[outcome] += 1
        else:
            found["wrong"].append(outcome)
    subject.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2_000)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    print(f"{given.n} flipped bits in each of {len(kinds)} kinds of files; some minutes", flush=True)
    began = time.monotonic()
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for kind in kinds:
        found = run_kind(kind, given.n, given.seed)
        wrong += found["wrong"]
        figures[kind] = {"noticed": found["noticed"], "harmless": found["harmless"], "wrong": len(found["wrong"])}
        print(f"{kind}: {figures[kind]} {found['wrong'][:3]}", flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=TESTS, capture_output=True, text=True, check=False
    ).stdout.strip()
    summary = {"target": "bitflips", "ok": not wrong, "n": given.n, "kinds": figures, "wrong": wrong[:10]}
    print(json.dumps({**summary, "seed": given.seed, "commit": commit, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
