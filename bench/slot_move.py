"""How fast slots move between two nodes: idle, against copying the same files; and under load, what clients notice.

    python bench/slot_move.py [--mb 1024] [--rate 40] [--seed 1] [--keep]

starts one node (replication 1) with ports and data of its own, writes twice `mb` MiB, and adds a second node, to which
half of the slots move: megabytes a second from the beginning of a loaded move to its decision. The files that came are
then copied once more, by two plain processes over loopback, with CRC32C, each file synced: the ratio is to be 0.6 at
least. Then `--rate` tablets a second are inserted for `BEFORE_S` seconds, and on while the second node is removed
again: the 99th percentile of the inserts over the whole move is to be at most twice that of before.
Prints one JSON object as its last line; exit 0 only if both hold and no insert failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

MIB = 1 << 20
ROWS, SENSORS, DEVICES = 1_000, 10, 40
TABLET_BYTES = ROWS * (SENSORS + 1) * 8
PIECE = 4 * MIB
BEFORE_S = 30
CLIENTS = 4
REMOVE_S = 1_800
RATIO_MIN, P99_MAX = 0.6, 2.0
OVER = re.compile(r"move (\d+) is over: (\d+) slots of group (\d+), (\d+) bytes, are now group (\d+)'s; (\d+) ms")


class Inserts:
    """Tablets of random walks, each for one of `DEVICES` storage groups, so that many slots hold some."""

    def __init__(self, load: Any, port: int) -> None:
        self.load = load
        self.port = port
        self.count = 0
        self.latencies: list[float] = []
        self.failed: list[str] = []

    def request(self, connection: Any, number: int) -> Any:
        rng = np.random.default_rng(number)
        times = (np.arange(ROWS) + (number // DEVICES) * ROWS) * self.load.STEP_MS + self.load.START_MS
        values = self.load.walk(rng, (SENSORS, ROWS)).astype(">f8").tobytes()
        return self.load.t.TSInsertTabletReq(
            connection.session, f"root.g{number % DEVICES}.d", [f"s{i}" for i in range(SENSORS)], values,
            times.astype(">i8").tobytes(), [self.load.DOUBLE] * SENSORS, ROWS,
        )  # fmt: skip

    async def client(self, until: Any, pause_s: float) -> None:
        connection = await self.load.Connection.open(self.port)
        due = time.monotonic()
        while not until():
            number, self.count = self.count, self.count + 1
            request = self.request(connection, number)
            due += pause_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            status = await connection.call("insertTablet", request)
            self.latencies.append(time.monotonic() - began)
            if status.code not in self.load.GOOD:
                self.failed.append(f"{status.code} {status.message}")
        connection.writer.close()

    async def run(self, until: Any, pause_s: float = 0.0) -> None:
        await asyncio.gather(*(self.client(until, pause_s) for _ in range(CLIENTS)))

    def p99_ms(self) -> float:
        taken, self.latencies = self.latencies, []
        return round(1000 * float(np.percentile(taken, 99)), 2)


# --- the plain copy ---------------------------------------------------------------------------------------------------


def serve(paths: list[str], listener: socket.socket) -> None:
    """Send each file to who connects."""
    connection, _ = listener.accept()
    with connection:
        for path in paths:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    connection.sendall(piece)


def kept(directory: Path, target: Path) -> list[str]:
    """A node's chunk files under names of their own, so that they stay when it merges them."""
    target.mkdir()
    found = []
    for number, path in enumerate(sorted(directory.rglob("*.chunk"))):
        with contextlib.suppress(FileNotFoundError):
            os.link(path, target / str(number))
            found.append(str(target / str(number)))
    return found


def copy(paths: list[str], target: Path) -> float:
    """Megabytes a second of a copy over loopback by two processes, with checksums, each file synced."""
    target.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.get_context("fork").Process(target=serve, args=(paths, listener))
    server.start()
    began, total, buffer = time.monotonic(), 0, bytearray(PIECE)
    with socket.create_connection(listener.getsockname()) as connection:
        for number, path in enumerate(paths):
            left, crc = os.path.getsize(path), 0
            total += left
            with open(target / str(number), "wb") as file:
                while left:
                    got = connection.recv_into(memoryview(buffer)[: min(left, PIECE)])
                    crc = crc32c.crc32c(memoryview(buffer)[:got], crc)
                    file.write(memoryview(buffer)[:got])
                    left -= got
                file.flush()
                os.fsync(file.fileno())
    seconds = time.monotonic() - began
    server.join()
    listener.close()
    shutil.rmtree(target)
    return total / 1e6 / seconds


# --- the moves --------------------------------------------------------------------------------------------------------


def moved(cluster: Any, node: int, behind: int = 0) -> tuple[int, float, int]:
    """(bytes, seconds, moves) of the loaded moves that the node's log tells of, those behind move `behind`."""
    size, seconds, count = 0, 0.0, 0
    for number, _, giver, some, owner, ms in OVER.findall(cluster.log(node)):
        if int(number) > behind and int(some) and giver != owner:
            size, seconds, count = size + int(some), seconds + int(ms) / 1000, count + 1
    return size, seconds, count


def last_move(cluster: Any) -> int:
    return max((int(found[0]) for node in (1, 2) for found in OVER.findall(cluster.log(node))), default=0)


async def measure(cluster: Any, load: Any, megabytes: int, rate: float) -> dict[str, Any]:
    inserts = Inserts(load, cluster.ports[0])
    tablets = 2 * megabytes * MIB // TABLET_BYTES
    await inserts.run(lambda: inserts.count >= tablets)
    connection = await load.Connection.open(cluster.ports[0])
    flush = load.t.TSExecuteStatementReq(connection.session, "FLUSH", connection.statement)
    await connection.call("executeUpdateStatement", flush)
    connection.writer.close()
    await asyncio.to_thread(cluster.add, REMOVE_S)
    size, seconds, moves = moved(cluster, 2)
    speed = size / 1e6 / seconds
    there = kept(cluster.member(2).directory, cluster.directory / "kept")
    plain = await asyncio.to_thread(copy, there, cluster.directory / "copy")
    pause_s, behind = CLIENTS / rate, last_move(cluster)
    inserts.latencies.clear()
    begin = time.monotonic()
    await inserts.run(lambda: time.monotonic() > begin + BEFORE_S, pause_s)
    before_ms = inserts.p99_ms()
    removing = asyncio.create_task(asyncio.to_thread(cluster.remove, 2, through=1, timeout_s=REMOVE_S))
    await inserts.run(removing.done, pause_s)
    await removing
    while_ms = inserts.p99_ms()
    busy_size, busy_seconds, _ = moved(cluster, 1, behind)
    ratio, p99 = speed / plain, while_ms / before_ms
    return {
        "mb_moved": round(size / 1e6), "moves": moves, "move_mb_s": round(speed, 1), "copy_mb_s": round(plain, 1),
        "ratio": round(ratio, 2), "p99_before_ms": before_ms, "p99_while_ms": while_ms, "p99_ratio": round(p99, 2),
        "busy_mb_moved": round(busy_size / 1e6), "busy_seconds": round(busy_seconds, 1),
        "failed": len(inserts.failed), "examples": inserts.failed[:3],
        "ok": ratio >= RATIO_MIN and p99 <= P99_MAX and not inserts.failed,
    }  # fmt: skip


def main() -> int:
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root / "bench"), str(root / "tests" / "cluster")]
    import load
    import processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1024, help="MiB of values and times that move")
    parser.add_argument("--rate", type=float, default=40.0, help="tablets a second of the load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    options = parser.parse_args()
    print(f"one node, then two; about {options.mb} MiB move there and back: at most 30 minutes", file=sys.stderr)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="slot-move-"))
    with processes.Processes(directory, 1, 1) as cluster:
        figures = asyncio.run(measure(cluster, load, options.mb, options.rate))
        if not figures["ok"]:
            print(cluster.tails(), file=sys.stderr)
    return processes.concluded("slot-move", directory, figures, seed=options.seed, began=began, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
