"""The load generator: inserts and queries over the client protocol, every request encoded before the clock starts.

    python bench/load.py --mode tablet|records|record|query|verify --ports 55560,55561,55562
        [--clients 10] [--devices 50] [--sensors 10] [--rows 1000] [--calls 50] [--batch 100] [--groups 10] [--seed 1]

Prints one JSON line: calls and points a second, latency percentiles, errors. `tablet` writes calls x rows rows a
client, spread over its devices; `verify` then counts every device's rows through every port. Values are a random walk
of normal steps (sigma 1), full precision. Needs the stock client (requirements/clients.txt) for its Thrift code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from iotdb.thrift.rpc import TSIService
from iotdb.thrift.rpc import ttypes as t
from thrift.protocol import TBinaryProtocol
from thrift.transport import TTransport

START_MS, STEP_MS = 1_600_000_000_000, 1_000
DOUBLE, GORILLA, SNAPPY = 4, 8, 1
GOOD = (200, 707)


def encode(method: str, *arguments: Any) -> bytes:
    """The whole frame of a call."""
    buffer = TTransport.TMemoryBuffer()
    client = TSIService.Client(TBinaryProtocol.TBinaryProtocolAccelerated(buffer))
    getattr(client, f"send_{method}")(*arguments)
    payload = buffer.getvalue()
    return struct.pack(">I", len(payload)) + payload


def decode(method: str, reply: bytes) -> Any:
    buffer = TTransport.TMemoryBuffer(reply)
    client = TSIService.Client(TBinaryProtocol.TBinaryProtocolAccelerated(buffer))
    return getattr(client, f"recv_{method}")()


class Connection:
    """One client connection: frames there, frames back, one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.session = 0
        self.statement = 0

    @classmethod
    async def open(cls, port: int) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        self = cls(reader, writer)
        request = t.TSOpenSessionReq(client_protocol=2, username="root", password="root", zoneId="UTC")
        answer = await self.call("openSession", request)
        if answer.status.code != 200:
            raise SystemExit(f"openSession: {answer.status.message}")
        self.session = answer.sessionId
        self.statement = await self.call("requestStatementId", self.session)
        return self

    async def send(self, frame: bytes) -> bytes:
        self.writer.write(frame)
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        return await self.reader.readexactly(length)

    async def call(self, method: str, *arguments: Any) -> Any:
        return decode(method, await self.send(encode(method, *arguments)))

    async def query(self, sql: str) -> Any:
        request = t.TSExecuteStatementReq(self.session, sql, self.statement, 10_000, 60_000)
        return await self.call("executeQueryStatement", request)


@dataclass
class Tally:
    seconds: float = 0.0
    calls: int = 0
    points: int = 0
    latencies: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def note(self, status: Any) -> None:
        if status.code in GOOD:
            return
        message = status.message or next(
            (sub.message for sub in status.subStatus or [] if sub.code not in GOOD), "no message"
        )
        self.errors[f"{status.code} {message}"] = self.errors.get(f"{status.code} {message}", 0) + 1

    def summary(self) -> dict[str, Any]:
        quantiles = np.percentile(self.latencies, [50, 95, 99, 100]) * 1000 if self.latencies else [0.0] * 4
        return {
            "seconds": round(self.seconds, 3),
            "calls": self.calls,
            "calls_per_s": round(self.calls / self.seconds, 1) if self.seconds else 0,
            "points": self.points,
            "points_per_s": round(self.points / self.seconds) if self.seconds else 0,
            **{f"p{name}_ms": round(float(q), 2) for name, q in zip((50, 95, 99, 100), quantiles, strict=True)},
            "errors": self.errors,
        }


def device(options: argparse.Namespace, number: int) -> str:
    return f"root.g{number % options.groups}.d{number}"


def walk(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.cumsum(rng.normal(0.0, 1.0, shape), axis=1)


def payloads(options: argparse.Namespace, client: int, session: int) -> tuple[str, list[bytes], int]:
    """(method, frames, points a frame)."""
    rng = np.random.default_rng(options.seed * 1000 + client)
    names = [f"s{i}" for i in range(options.sensors)]
    per = max(1, options.devices // options.clients)
    frames = []
    if options.mode == "tablet":
        for k in range(options.calls):
            times = START_MS + (np.arange(options.rows) + (k // per) * options.rows) * STEP_MS
            values = walk(rng, (options.sensors, options.rows)).astype(">f8").tobytes()
            request = t.TSInsertTabletReq(
                session, device(options, client * per + k % per), names, values, times.astype(">i8").tobytes(),
                [DOUBLE] * options.sensors, options.rows,
            )  # fmt: skip
            frames.append(encode("insertTablet", request))
        return "insertTablet", frames, options.rows * options.sensors
    record = struct.Struct(">" + "bd" * options.sensors)

    def cells() -> bytes:
        return record.pack(*(x for value in rng.normal(0, 10, options.sensors) for x in (DOUBLE, value)))

    if options.mode == "record":
        for k in range(options.calls):
            when = START_MS + (k // per) * STEP_MS
            name = device(options, client * per + k % per)
            frames.append(encode("insertRecord", t.TSInsertRecordReq(session, name, names, cells(), when)))
        return "insertRecord", frames, options.sensors
    for k in range(options.calls):
        devices = [device(options, q % options.devices) for q in range(options.batch)]
        row = (k * options.clients + client) * max(1, options.batch // options.devices)
        times = [START_MS + (row + q // options.devices) * STEP_MS for q in range(options.batch)]
        values = [cells() for _ in range(options.batch)]
        request = t.TSInsertRecordsReq(session, devices, [names] * options.batch, values, times)
        frames.append(encode("insertRecords", request))
    return "insertRecords", frames, options.batch * options.sensors


async def create(options: argparse.Namespace, port: int) -> None:
    connection = await Connection.open(port)
    paths = [f"{device(options, d)}.s{i}" for d in range(options.devices) for i in range(options.sensors)]
    for at in range(0, len(paths), 1000):
        some = paths[at : at + 1000]
        request = t.TSCreateMultiTimeseriesReq(
            connection.session, some, [DOUBLE] * len(some), [GORILLA] * len(some), [SNAPPY] * len(some)
        )
        await connection.call("createMultiTimeseries", request)  # those that exist already are refused: as good


async def write(options: argparse.Namespace, ports: list[int]) -> Tally:
    await create(options, ports[0])
    connections = [await Connection.open(ports[i % len(ports)]) for i in range(options.clients)]
    work = [payloads(options, i, connection.session) for i, connection in enumerate(connections)]
    tally = Tally()
    replies: list[tuple[str, bytes]] = []

    async def run(connection: Connection, method: str, frames: list[bytes]) -> None:
        for frame in frames:
            began = time.perf_counter()
            reply = await connection.send(frame)
            tally.latencies.append(time.perf_counter() - began)
            replies.append((method, reply))

    began = time.perf_counter()
    await asyncio.gather(*(run(c, method, frames) for c, (method, frames, _) in zip(connections, work, strict=True)))
    tally.seconds = time.perf_counter() - began
    tally.calls = len(replies)
    tally.points = sum(len(frames) * points for _, frames, points in work)
    for method, reply in replies:
        tally.note(decode(method, reply))
    return tally


async def read(options: argparse.Namespace, ports: list[int]) -> dict[str, Any]:
    """Windows of raw rows, whole aggregations, GROUP BY, LAST: each from random devices."""
    rng = np.random.default_rng(options.seed)
    total = options.total
    end = START_MS + total * STEP_MS

    def statement(kind: str) -> str:
        name = device(options, int(rng.integers(options.devices)))
        sensor = f"s{int(rng.integers(options.sensors))}"
        if kind == "raw":
            low = START_MS + int(rng.integers(max(1, total - 1000))) * STEP_MS
            return f"select * from {name} where time >= {low} and time < {low + 1000 * STEP_MS}"
        if kind == "aggregation":
            return f"select count({sensor}), avg({sensor}), max_value({sensor}) from {name}"
        if kind == "windows":
            return f"select avg({sensor}) from {name} group by ([{START_MS}, {end}), 1h)"
        return f"select last * from {name}"

    results: dict[str, Any] = {}
    for kind in ("raw", "aggregation", "windows", "last"):
        tally = Tally()
        connections = [await Connection.open(ports[i % len(ports)]) for i in range(options.clients)]
        work = [[statement(kind) for _ in range(options.calls)] for _ in connections]

        async def run(connection: Connection, statements: list[str], tally: Tally = tally) -> None:
            for sql in statements:
                began = time.perf_counter()
                answer = await connection.query(sql)
                tally.latencies.append(time.perf_counter() - began)
                tally.note(answer.status)
                tally.points += len(answer.queryDataSet.time) // 8 if answer.queryDataSet else 0

        began = time.perf_counter()
        await asyncio.gather(*(run(c, s) for c, s in zip(connections, work, strict=True)))
        tally.seconds = time.perf_counter() - began
        tally.calls = options.calls * len(connections)
        results[kind] = tally.summary()
    return results


async def verify(options: argparse.Namespace, ports: list[int]) -> dict[str, Any]:
    wrong = []
    for port in ports:
        connection = await Connection.open(port)
        for number in range(options.devices):
            answer = await connection.query(f"select count(s0) from {device(options, number)}")
            if answer.status.code != 200 or not answer.queryDataSet.valueList:
                wrong.append(f"port {port} {device(options, number)}: {answer.status.message}")
                continue
            (count,) = struct.unpack(">q", answer.queryDataSet.valueList[0])
            if count != options.total:
                wrong.append(f"port {port} {device(options, number)}: {count}")
    return {"checked": len(ports) * options.devices, "wrong": len(wrong), "examples": wrong[:5]}


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


async def main(options: argparse.Namespace) -> int:
    ports = [int(port) for port in options.ports.split(",")]
    if not options.total:
        per = max(1, options.devices // options.clients)
        options.total = -(-options.calls // per) * options.rows
    result: dict[str, Any] = {"target": "load", "mode": options.mode, "seed": options.seed}
    if options.mode == "query":
        result.update(await read(options, ports))
        ok = not any(result[kind]["errors"] for kind in ("raw", "aggregation", "windows", "last"))
    elif options.mode == "verify":
        result.update(await verify(options, ports))
        ok = not result["wrong"]
    else:
        result.update((await write(options, ports)).summary())
        ok = not result["errors"]
    print(json.dumps({**result, "ok": ok, "commit": commit()}))
    return 0 if ok else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="tablet", choices=["tablet", "records", "record", "query", "verify"])
    parser.add_argument("--ports", default="55560,55561,55562")
    for name, value in (
        ("clients", 10), ("devices", 50), ("sensors", 10), ("rows", 1000), ("calls", 50), ("batch", 100),
        ("groups", 10), ("seed", 1), ("total", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    sys.exit(asyncio.run(main(parser.parse_args())))
