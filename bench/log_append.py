"""How fast the durable log appends on a real disk: prints one line of JSON, in at most ten seconds.

`python bench/log_append.py [directory]`. Three workloads of two seconds each: one small submission in flight, 64 in
flight, and 1 MiB submissions with 8 in flight; then the log is opened again.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from iotdb_cluster.cluster.log import Append, Compact, DurableLog, LogOptions, State
from iotdb_cluster.raft import Entries, HardState
from iotdb_cluster.world import real_world

SECONDS = 2.0


async def workload(log: DurableLog, replica: int, payload: bytes, in_flight: int) -> dict[str, float]:
    """Keep `in_flight` submissions of one entry and a hard state on their way; compact now and then."""
    batches, written = log.batches_written, log.bytes_written
    submitted = answered = 0
    started = time.perf_counter()
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    latencies: list[float] = []

    def submit() -> None:
        nonlocal submitted
        submitted += 1
        index = submitted
        at = time.perf_counter()
        records = [State(replica, HardState(1, 1, index - 1)), Append(replica, Entries(index, [1], [0], [payload]))]
        if index % 256 == 0:
            log.submit([Compact(replica, index - 200, 1)], lambda: None)
        log.submit(records, lambda: done(at))

    def done(at: float) -> None:
        nonlocal answered
        answered += 1
        now = time.perf_counter()
        latencies.append(now - at)
        if now - started < SECONDS:
            submit()
        elif answered == submitted and not finished.done():
            finished.set_result(None)

    for _ in range(in_flight):
        submit()
    await finished
    seconds = time.perf_counter() - started
    latencies.sort()
    return {
        "submissions_per_s": round(answered / seconds),
        "batches_per_s": round((log.batches_written - batches) / seconds),
        "mb_per_s": round((log.bytes_written - written) / seconds / 1e6, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 3),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 3),
    }


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else None
    directory = Path(tempfile.mkdtemp(prefix="log-append-", dir=base))
    world = real_world(2)
    result: dict[str, object] = {"target": "log_append"}
    try:

        async def run() -> None:
            started = time.perf_counter()
            log = DurableLog.open(world.files, str(directory), random.Random(1), LogOptions(), workers=world.workers)
            result["create_s"] = round(time.perf_counter() - started, 3)
            writer = asyncio.ensure_future(log.run())
            result["one_200_byte"] = await workload(log, 1, b"x" * 200, 1)
            result["64_of_200_byte"] = await workload(log, 2, b"x" * 200, 64)
            result["8_of_1_mib"] = await workload(log, 3, random.Random(2).randbytes(1 << 20), 8)
            await log.close()
            await writer

        asyncio.run(run())
        size = sum(path.stat().st_size for path in directory.iterdir())
        started = time.perf_counter()
        log = DurableLog.open(world.files, str(directory), random.Random(1), LogOptions())
        result["open_s"] = round(time.perf_counter() - started, 3)
        result["open_mb"] = round(size / 1e6)
        log.abandon()
        result["ok"] = True
    finally:
        world.workers.close()
        shutil.rmtree(directory)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
