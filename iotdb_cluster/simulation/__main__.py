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

from iotdb_cluster.simulation.swarm import SwarmFailure, run_seed

TIME_LIMIT_S = 1_800


@click.command()
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--seeds", type=int, help="Run so many seeds, from --seed on, once each.")
@click.option("--minutes", type=float, default=TIME_LIMIT_S / 60, show_default=True, help="Begin no seed after that.")
@click.option("--keep-going", is_flag=True, help="Go on after a seed that fails.")
@click.option("--log", "level", default="CRITICAL", help="Level of the nodes' own log lines.")
def main(seed: int, seeds: int | None, minutes: float, keep_going: bool, level: str) -> None:
    """Run seeds; exit 1 where one fails, with its last events and the command that repeats it."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    print(f"whole nodes in the simulated world; at most {minutes:g} minutes", flush=True)
    began = time.monotonic()
    digests: list[str] = []
    failures: list[str] = []
    ran = 0
    for number in [seed, seed] if seeds is None else range(seed, seed + seeds):
        if time.monotonic() - began > minutes * 60:
            break
        ran += 1
        try:
            result = run_seed(number)
        except SwarmFailure as error:
            failures.append(str(error).partition("\n")[0])
            print(error, flush=True)
            if keep_going:
                continue
            break
        digests.append(result.digest)
        print(
            f"seed {number}: {result.acknowledged} acknowledged, {result.unknown} unknown, {result.refused} refused, "
            f"{result.crashes} crashes, {result.events} events in {result.virtual_ms / 1000:.1f} virtual s, "
            f"digest {result.digest}",
            flush=True,
        )
    if seeds is None and len(set(digests)) > 1:
        failures.append("two runs of one seed gave different digests")
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    summary = {
        "target": "sim",
        "ok": not failures,
        "seed": seed,
        "runs": ran,
        "digest": digests[-1] if digests else "",
        "failures": failures,
        "commit": commit.stdout.strip(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(summary))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
