"""The store against a dict, the long form: random histories of writes, late rows, overwrites, deletions, expiry,
flushes,
compactions, restarts, copies, damage with repair, and power cuts at any call of the disk.

    python tests/storage/histories.py --n 20000 [--seed 1] [--jobs 2]

Every second history is one of power cuts. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
LIMIT_S = 7_200


def load(name: str) -> ModuleType:
    full = f"iotdb_tests_storage_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        if spec is None or spec.loader is None:
            raise FileNotFoundError(name)
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


def run_one(seed: int, number: int) -> str:
    """Carry out one history; what went wrong, or nothing."""
    tools, model = load("conftest").Tools, load("test_storage_model")
    rng = random.Random(f"{seed}:{number}")
    try:
        if number % 2:
            model.run_power_cuts(tools, rng.getrandbits(60))
        else:
            model.run_history(tools, model.random_script(rng), rng.getrandbits(32))
    except Exception:
        return f"history {number} of seed {seed}: {traceback.format_exc(limit=-3)}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="begin with this history")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    print(f"{given.n} histories of the store against a dict; at most {LIMIT_S // 60} minutes", flush=True)
    began = time.monotonic()
    done, failures = 0, []
    numbers = range(given.first, given.first + given.n)
    with ProcessPoolExecutor(given.jobs) as pool:
        for failure in pool.map(partial(run_one, given.seed), numbers, chunksize=20):
            done += 1
            if failure:
                failures.append(failure)
                print(failure, flush=True)
            if time.monotonic() - began > LIMIT_S or len(failures) >= 10:
                pool.shutdown(cancel_futures=True)
                break
    ok = not failures and done == given.n
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    figures = {"target": "storage-model", "ok": ok, "histories": done, "failed": len(failures), "seed": given.seed}
    print(json.dumps({**figures, "commit": commit, "seconds": round(time.monotonic() - began, 1)}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
