"""`python -m iotdb_cluster.simulation --seed N | --seeds M`: whole nodes in the simulated world.

One seed runs twice and must give the same digest of events. The last line is a JSON object.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import click

from iotdb_cluster.simulation.smoke import run_smoke

TIME_LIMIT_S = 1_800


@click.command()
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--seeds", type=int, help="Run so many seeds, from --seed on, once each.")
@click.option("--log", "level", default="CRITICAL", help="Level of the nodes' own log lines.")
def main(seed: int, seeds: int | None, level: str) -> None:
    """Run seeds; exit 1 at the first that fails, with the command that repeats it."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    print(f"three whole nodes in the simulated world; at most {TIME_LIMIT_S} s", flush=True)
    began = time.monotonic()
    digests: list[str] = []
    runs = [seed, seed] if seeds is None else list(range(seed, seed + seeds))
    ok, failure = True, ""
    for number in runs:
        try:
            result = run_smoke(number)
        except Exception as error:
            ok, failure = False, f"{type(error).__name__}: {error}"
            print(f"seed {number} fails: {failure}\nrepeat it with: make sim SEED={number}", flush=True)
            break
        digests.append(result.digest)
        print(
            f"seed {number}: {result.acknowledged} acknowledged, {result.unknown} unknown, {result.refused} refused, "
            f"{result.crashes} crashes, {result.events} events in {result.virtual_ms / 1000:.1f} virtual s, "
            f"digest {result.digest}",
            flush=True,
        )
        if time.monotonic() - began > TIME_LIMIT_S:
            ok, failure = False, "the time was up"
            break
    if ok and seeds is None and digests[0] != digests[1]:
        ok, failure = False, "two runs of one seed gave different digests"
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    summary = {
        "target": "sim",
        "ok": ok,
        "seed": seed,
        "runs": len(digests),
        "digest": digests[-1] if digests else "",
        "failure": failure,
        "commit": commit.stdout.strip(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(summary))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
