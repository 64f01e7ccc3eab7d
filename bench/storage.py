"""All benchmarks of storage one after another: `make bench-storage`.

    python bench/storage.py [--small]

Each is a process of its own on one core, with a time limit; what it still runs then is ended. The last line is one JSON
object; `ok` only if every target of every one is met.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import measuring as m

# seconds, on a machine that has much else to do: of the whole form, of the small one
LIMITS = {
    "storage_ingest": (600, 120),
    "storage_size": (900, 300),
    "storage_read": (300, 120),
    "storage_late": (300, 120),
    "storage_open": (300, 120),
    "storage_schema": (300, 120),
}


def run(name: str, small: bool, limit_s: int) -> dict[str, object]:
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *(["--small"] if small else [])]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"target": name, "ok": False, "missed": [f"not done after {limit_s} s"]}
    print(done.stdout, end="", flush=True)
    try:
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (ValueError, IndexError):
        return {"target": name, "ok": False, "missed": [f"it ended with {done.returncode} and without its last line"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a form of a minute, for tests: speeds are not judged")
    small = parser.parse_args().small
    limits = {name: both[small] for name, both in LIMITS.items()}
    print(f"runs {', '.join(limits)} one after another, at most {sum(limits.values())} s", flush=True)
    began = time.perf_counter()
    results = {name: run(name, small, limit) for name, limit in limits.items()}
    missed = [f"{name}: {what}" for name, found in results.items() for what in found.get("missed", ["no result"])]
    result = {
        "target": "bench-storage",
        "ok": all(found.get("ok") is True for found in results.values()) and not missed,
        "missed": missed,
        "small": small,
        "seed": m.SEED,
        "commit": m.commit(),
        "results": results,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
