"""How long a killed node takes to serve again, with much log to replay.

    python bench/restart.py --mb 1024 [--seed 1] [--keep]

One node, on ports and data of its own, that is told not to flush: tablets are written until the log holds `mb` MiB,
the node is killed (-9) and started again. Measured: seconds until it serves, seconds until a strong read of each group
is answered (so that all is replayed), CPU seconds that its process took for it, memory. Then every row is counted.
Prints one JSON object as its last line; exit 0 only if no row is missing and the start took less than `SECONDS_MAX` of
CPU for each GiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import catch_up

MIB = 1 << 20
SECONDS_MAX = 15.0
KEYS = {
    "log_bytes_max": 64 << 30,
    "memtable_size_threshold": 16 << 30,
    "memtable_memory_mb": 16 << 10,
}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _write(writers: list[catch_up.Writer], size: int) -> None:
    tablets = max(1, size // catch_up.TABLET_BYTES // len(writers))
    await asyncio.gather(*(writer.write(tablets, 0, asyncio.Event()) for writer in writers))
    for writer in writers:
        writer.close()


async def _missing(writers: list[catch_up.Writer], load: ModuleType, port: int) -> list[str]:
    connection = await load.Connection.open(port)
    wrong = []
    for device, count in {device: count for writer in writers for device, count in writer.rows().items()}.items():
        answer = await connection.query(f"SELECT count(s0) FROM {device}")
        found = int.from_bytes(answer.queryDataSet.valueList[0], "big") if answer.queryDataSet else -1
        if found != count:
            wrong.append(f"{device} has {found} rows of {count}")
    connection.writer.close()
    return wrong


async def _ask_all(writers: list[catch_up.Writer], load: ModuleType, port: int) -> None:
    """A small strong read in each storage group."""
    connection = await load.Connection.open(port)
    for writer in writers:
        answer = await connection.query(f"SELECT s0 FROM {writer.device(0)} WHERE time = {load.START_MS}")
        if answer.status.code != 200:
            raise SystemExit(f"{writer.device(0)}: {answer.status.message}")
    connection.writer.close()


def run(cluster: Any, load: ModuleType, megabytes: int) -> dict[str, Any]:
    """All of it on a running cluster of one node."""
    writers = [catch_up.Writer(number, load, cluster.ports) for number in range(catch_up.CLIENTS)]
    asyncio.run(_write(writers, megabytes * MIB))
    cluster.kill(1)
    log = cluster.member(1).directory / "data" / "wal"
    size = sum(path.stat().st_size for path in log.glob("segment-*")) // MIB
    print(f"the log has {size} MiB of segments; starting again", file=sys.stderr)
    began = time.monotonic()
    cluster.launch(1)
    cluster.wait()
    seconds = time.monotonic() - began
    asyncio.run(_ask_all(writers, load, cluster.ports[0]))
    replayed = time.monotonic() - began
    pid = cluster.pid(1)
    cpu, memory = cpu_seconds(pid), catch_up.resident_bytes(pid) // MIB
    wrong = asyncio.run(_missing(writers, load, cluster.ports[0]))
    limit = SECONDS_MAX * max(1.0, megabytes / 1024)
    return {
        "mb": megabytes,
        "segments_mb": size,
        "serves_after_s": round(seconds, 2),
        "answers_after_s": round(replayed, 2),
        "cpu_s": round(cpu, 2),
        "rss_mb": memory,
        "problems": len(wrong),
        "examples": wrong[:5],
        "ok": not wrong and cpu <= limit,
    }


def main() -> int:
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root / "bench"), str(root / "tests" / "cluster")]
    import load
    import processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1024, help="MiB that are written, and stay in the log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    options = parser.parse_args()
    print(f"one node; {options.mb} MiB are written, then it is killed and started again; some minutes", file=sys.stderr)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="restart-"))
    with processes.Processes(directory, nodes=1, **KEYS) as cluster:
        figures = run(cluster, load, options.mb)
    if options.keep:
        print(f"data and logs are kept in {directory}", file=sys.stderr)
    else:
        shutil.rmtree(directory)
    result = {"target": "restart", **figures, "seed": options.seed, "commit": load.commit()}
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
