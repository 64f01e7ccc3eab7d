"""`python -m iotdb_cluster.simulation --seed N | --seeds M`: whole nodes in the simulated world.

One seed runs twice and must give the same digest of events. Several run once each, on `--jobs` processes. The last line
is a JSON object.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from iotdb_cluster.simulation.growth import run_sequence
from iotdb_cluster.simulation.runs import Run, runs
from iotdb_cluster.simulation.swarm import run_seed

MINUTES_MAX = 30.0
JOBS_MAX = 64


def _seeds(seed: int, seeds: int | None, deadline: float) -> Iterator[int]:
    for number in [seed, seed] if seeds is None else range(seed, seed + seeds):
        if time.monotonic() > deadline:
            return
        yield number


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    ).stdout.strip()


@click.command()
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--seeds", type=click.IntRange(1), help="Run so many seeds, from --seed on, once each.")
@click.option("--jobs", type=click.IntRange(1, JOBS_MAX), default=1, show_default=True, help="Processes.")
@click.option("--minutes", type=float, default=MINUTES_MAX, show_default=True, help="Begin no seed after that.")
@click.option("--keep-going", is_flag=True, help="Go on after a seed that fails.")
@click.option("--growth", is_flag=True, help="Sequences of joins and leaves instead of the swarm.")
@click.option("--log", "level", default="", help="Level of the nodes' own log lines; without it there are none.")
def main(seed: int, seeds: int | None, jobs: int, minutes: float, keep_going: bool, growth: bool, level: str) -> None:
    """Run seeds; exit 1 where one fails, with its last events and the command that repeats it."""
    if level:
        logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    else:
        logging.disable(logging.CRITICAL)
    which = f"seed {seed}, twice" if seeds is None else f"{seeds} seeds from {seed} on"
    print(f"whole nodes in the simulated world: {which}; begins none after {minutes:g} minutes", flush=True)
    began = time.monotonic()
    ran: list[Run] = []
    for run in runs(_seeds(seed, seeds, began + minutes * 60), jobs, run_sequence if growth else run_seed):
        ran.append(run)
        print(run.line, flush=True)
        if run.result is None and not keep_going:
            break
    failures = [run.failure.partition("\n")[0] for run in ran if run.result is None]
    digests = [run.result.digest for run in ran if run.result is not None]
    if seeds is None and len(set(digests)) > 1:
        failures.append("two runs of one seed gave different digests")
    costs = [run.cpu_s for run in ran] or [0.0]
    three = [run.cpu_s for run in ran if run.result is not None and run.result.nodes == 3] or [0.0]
    summary = {
        "target": "sim-membership" if growth else "sim",
        "ok": bool(ran) and not failures,
        "seed": seed,
        "runs": len(ran),
        "digest": digests[-1] if digests else "",
        "failures": failures,
        "cpu_s_mean": round(sum(costs) / len(costs), 2),
        "cpu_s_max": round(max(costs), 2),
        "cpu_s_max_of_three_nodes": round(max(three), 2),
        "commit": _commit(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(summary))
    sys.exit(1 if failures or not ran else 0)


if __name__ == "__main__":
    main()
