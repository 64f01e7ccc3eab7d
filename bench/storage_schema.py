"""A million series with tags and aliases: memory, checkpoint, opening, and how long a checkpoint holds the loop.

    python bench/storage_schema.py [--small]

10,000 devices of 100 series, each with an alias of its own, two tags (7 x 50 combinations) and an attribute of its own.
They are created and checkpointed in one process, and opened in a second one, whose memory counts (all of it, the
program included). Targets: 700 MB, opened within 10 s of CPU, no step of the checkpoint over 10 ms on the loop.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import measuring as m

from iotdb_cluster.columns import DataType, Encoding
from iotdb_cluster.schema import PathPattern, SchemaTree, SeriesSpec, TagFilter

LIMIT_S = 300
DEVICES, SERIES = 10_000, 100
MEMORY_MAX_MB, OPEN_MAX_S, STEP_MAX_MS = 700, 10.0, 10.0


def made(devices: int) -> SchemaTree:
    tree = SchemaTree("root.sg")
    for device in range(devices):
        tree.ensure_series(
            [
                SeriesSpec(
                    f"root.sg.area{device // 100}.d{device}.s{at}",
                    DataType.DOUBLE,
                    Encoding.GORILLA,
                    alias=f"alias{at}_of_{device}",
                    tags={"unit": f"u{at % 7}", "site": f"site{device % 50}"},
                    attributes={"serial": f"{device * SERIES + at:08d}"},
                )
                for at in range(SERIES)
            ]
        )
    return tree


def open_in_this_process(path: str) -> None:
    """The second process: prints its figures."""
    m.pin()
    began = time.process_time()
    with open(path, "rb") as file:
        data = file.read()
    tree = SchemaTree.load(data)
    seconds = time.process_time() - began
    del data
    gc.collect()
    memory = m.rss_mb()
    pattern = PathPattern.parse("root.sg")
    began = time.process_time()
    found = tree.match(pattern, tag=TagFilter("site", "site7"), limit=1_000)
    filtering = time.process_time() - began
    series = tree.get("root.sg.area0.d7.alias3_of_7")
    if series is None or series.tags != {"unit": "u3", "site": "site7"} or not found:
        raise SystemExit("the tree that was opened does not hold what was created")
    print(json.dumps({"series": len(tree), "open_cpu_s": round(seconds, 2), "rss_mb": memory,
                      "tag_filter_1000_ms": round(filtering * 1e3, 1)}))  # fmt: skip


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--open":
        open_in_this_process(sys.argv[2])
        return
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    devices = 500 if small else DEVICES
    start = time.process_time()
    tree = made(devices)
    figures: dict[str, Any] = {"create_cpu_s": round(time.process_time() - start, 2)}
    gc.collect()
    gc.freeze()
    figures["rss_mb_after_creation"] = m.rss_mb()
    start = time.process_time()
    snapshot = tree.snapshot()
    steps = [time.process_time() - start]
    more = True
    while more:
        start = time.process_time()
        more = snapshot.step()
        steps.append(time.process_time() - start)
    start = time.process_time()
    data = snapshot.encode()
    figures["encode_on_a_worker_cpu_s"] = round(time.process_time() - start, 2)
    figures["longest_step_on_the_loop_ms"] = round(max(steps) * 1e3, 2)
    figures["all_steps_ms"] = round(sum(steps) * 1e3, 1)
    figures["checkpoint_bytes"] = len(data)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "schema")
        with open(path, "wb") as file:
            file.write(data)
        done = subprocess.run(
            [sys.executable, __file__, "--open", path], capture_output=True, text=True, timeout=LIMIT_S
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    figures["opened"] = opened = json.loads(done.stdout.splitlines()[-1])
    missed = []
    if opened["series"] != devices * SERIES:
        missed.append(f"{opened['series']} series of {devices * SERIES}")
    if opened["rss_mb"] > MEMORY_MAX_MB:
        missed.append(f"{opened['rss_mb']} MB, the target is {MEMORY_MAX_MB}")
    if not small and opened["open_cpu_s"] > OPEN_MAX_S:
        missed.append(f"opened in {opened['open_cpu_s']} s, the target is {OPEN_MAX_S}")
    if not small and max(steps) * 1e3 > STEP_MAX_MS:
        missed.append(f"a step of the checkpoint takes {max(steps) * 1e3:.1f} ms, the target is {STEP_MAX_MS}")
    m.finish("storage_schema", began, missed, figures)


if __name__ == "__main__":
    main()
