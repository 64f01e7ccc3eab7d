"""What the benchmarks of storage share: one core, memory, the last line."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.storage import MergeRequest, Store, UnitId

UNIT = UnitId(1, 0)
START_MS = 1_700_000_000_000
SEED = 20_240_217


def pin() -> int | None:
    """This process to one core, the last one that it may use; which."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def rss_mb() -> float:
    with open("/proc/self/statm") as file:
        return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def commit() -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def best_of(times: int, work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it gives, seconds of CPU of the best of so many runs): other work on the machine does not count then."""
    best = float("inf")
    found = None
    for _ in range(times):
        began = time.process_time()
        found = work()
        best = min(best, time.process_time() - began)
    return found, best


def arguments(about: str | None, limit_s: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a form of seconds, for tests: speeds are not judged")
    options = parser.parse_args()
    core = pin()
    print(
        f"{Path(sys.argv[0]).name}: on core {core}, at most {limit_s} s{' (small)' if options.small else ''}",
        flush=True,
    )
    return options


def finish(target: str, began: float, missed: list[str], figures: dict[str, Any]) -> None:
    """Print the last line and exit: 0 only if nothing was missed."""
    result = {"target": target, "ok": not missed, "missed": missed, "seed": SEED, "commit": commit(), **figures}
    print(json.dumps({**result, "seconds": round(time.perf_counter() - began, 2)}))
    raise SystemExit(1 if missed else 0)


def flush(store: Store) -> None:
    for job in store.seal():
        job.run()
        job.finish()


def compact(store: Store) -> float:
    """All files of each unit into one, as FULL MERGE does; seconds of CPU."""
    began = time.process_time()
    store.request_merge(MergeRequest.FULL)
    while (job := store.pick()) is not None:
        job.run()
        job.finish()
        store.collect()
    return time.process_time() - began


def file_bytes(store: Store) -> int:
    return sum(info.bytes for info in store.files_of(UNIT))


def tablets(
    device: str, names: tuple[str, ...], kind: DataType, times: Any, columns: list[Any], rows: int
) -> Iterator[Tablet]:
    """Whole columns cut into tablets of so many rows."""
    shape = shape_of(names, tuple([kind] * len(names)))
    for at in range(0, len(times), rows):
        part = [Column(kind, values[at : at + rows]) for values in columns]
        yield Tablet(device, shape, times[at : at + rows], part)


def walk(generator: np.random.Generator, count: int, sigma: float, decimals: int | None) -> Any:
    """A random walk from 20: float64[count]; steps are normal with this sigma."""
    values = 20.0 + np.cumsum(generator.normal(0.0, sigma, count))
    return values if decimals is None else values.round(decimals)
