"""Power cuts at each of the first calls of a disk: three whole nodes, of which one, two or all lose power there.

    python -m iotdb_cluster.simulation.powercut --calls 2000 --jobs 2

A run is a number of a call and how many nodes are cut. The cluster is founded, writers insert and flush; at that
call of one node's disk the power goes, there and on the others that are cut, in the midst of whatever they do. They are
started again a moment later. Then every acknowledged point must be there, through every node, nothing else, and the
replicas must be equal. Runs of one call differ by the node and by what of the interrupted call takes effect.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

__all__ = ["CutResult", "run_cut"]

NODES = smoke.NODES
UNTIL_CUT_MS = 120_000
DARK_MS = 700  # before the nodes that lost power start again
AFTER_MS = 1_500  # of writing once they run
SERVES_MS = 60_000
FLUSH_MS = 400  # between two FLUSH
TIME_LIMIT_S = 14_400


@dataclass(slots=True)
class CutResult:
    """`struck`: whether the call was reached. `failure` says what was wrong, empty where nothing was."""

    call: int
    nodes: int
    struck: bool
    acknowledged: int
    failure: str = ""


class _Run:
    """One cluster and what was written to it."""

    def __init__(self, simulation: Simulation, call: int, nodes: int) -> None:
        self.simulation = simulation
        self.names = [smoke._name(number) for number in range(1, NODES + 1)]
        first = call % NODES
        self.victims = [self.names[(first + step) % NODES] for step in range(nodes)]
        self.history = smoke._History()
        self.struck = False
        for number in range(1, NODES + 1):
            simulation.add_node(smoke._name(number), smoke._main(number, False), start=False)
        disk = simulation.nodes[self.victims[0]].disk
        disk.cut_at = call
        told = disk.on_cut
        disk.on_cut = lambda: self._cut(told)
        for name in self.names:
            simulation.restart(name)

    def _cut(self, told: Callable[[], None] | None) -> None:
        self.struck = True
        if told is not None:
            told()
        # The others lose power in the same moment, behind whatever this call of the first one was a part of.
        self.simulation.loop.call_soon(self._cut_others)

    def _cut_others(self) -> None:
        for name in self.victims[1:]:
            if self.simulation.is_running(name):
                self.simulation.crash(name)

    async def write(self, world: World, writer: int) -> None:
        """Insert unique values until told to stop; note what became of each."""
        rng = random.Random(f"powercut:{writer}")
        clients = [SimulatedClient(world, name, smoke.CLIENT_PORT, 5_000) for name in self.names]
        count = 0
        while not self.history.stop:
            count += 1
            device = f"root.cut{rng.randrange(2)}.d{writer}"
            at = count * 97
            series = f"{device}.s1"
            try:
                await rng.choice(clients).insert(device, "s1", at, float(count))
                self.history.acknowledged.setdefault(series, {})[at] = float(count)
            except CallerError as error:
                if error.code in (Status.TIME_OUT, Status.INTERNAL_SERVER_ERROR):
                    self.history.maybe.setdefault(series, {})[at] = float(count)
                await asyncio.sleep(0.05)
            await asyncio.sleep(rng.uniform(0.0, 0.02))

    async def flush(self, world: World) -> None:
        """FLUSH again and again: files, manifests and checkpoints are made all the time."""
        clients = [SimulatedClient(world, name, smoke.CLIENT_PORT, 5_000) for name in self.names]
        turn = 0
        while not self.history.stop:
            await asyncio.sleep(FLUSH_MS / 1000)
            turn += 1
            try:
                await clients[turn % NODES].execute("FLUSH" if turn % 3 else "FULL MERGE")
            except CallerError:
                continue

    def start_again(self) -> None:
        for name in self.names:
            if not self.simulation.is_running(name):
                self.simulation.restart(name)


def run_cut(call: int, nodes: int, seed: int = 1) -> CutResult:
    """Cut the power of `nodes` nodes at the `call`-th changing call of a disk."""
    with Simulation(seed, debug=False) as simulation:
        run = _Run(simulation, call, nodes)
        try:
            _carry_out(simulation, run)
        except Exception as error:
            return CutResult(call, nodes, run.struck, 0, f"{type(error).__name__}: {error}")
        return CutResult(call, nodes, run.struck, sum(map(len, run.history.acknowledged.values())))


def _carry_out(simulation: Simulation, run: _Run) -> None:
    tasks = [simulation.spawn(run.write(simulation.world(f"writer{number}"), number)) for number in range(2)]
    tasks.append(simulation.spawn(run.flush(simulation.world("flusher"))))
    simulation.run_until(lambda: run.struck, UNTIL_CUT_MS)
    simulation.run_until(DARK_MS)
    run.start_again()
    simulation.run_until(AFTER_MS)
    run.history.stop = True
    simulation.run_until(lambda: all(task.done() for task in tasks), SERVES_MS)
    world = simulation.world("client")
    simulation.run(smoke._serving(world), SERVES_MS)
    simulation.run(smoke._verify(world, run.history), SERVES_MS)


def _run_one(seed: int, item: tuple[int, int]) -> CutResult:
    return run_cut(*item, seed=seed)


@click.command()
@click.option("--calls", type=int, default=2_000, show_default=True, help="The first so many calls.")
@click.option("--first", type=int, default=1, show_default=True, help="Begin with this call.")
@click.option("--step", type=int, default=1, show_default=True, help="Only each so-manieth call.")
@click.option("--nodes", type=click.Choice(["1", "2", "3", "each"]), default="each", help="How many lose power.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(calls: int, first: int, step: int, nodes: str, jobs: int, seed: int) -> None:
    """Exit 1 where anything acknowledged is lost, or a node does not start again."""
    numbers = (1, 2, 3) if nodes == "each" else (int(nodes),)
    items = [(call, count) for call in range(first, calls + 1, step) for count in numbers]
    print(f"{len(items)} power cuts of three simulated nodes; at most {TIME_LIMIT_S // 60} minutes", flush=True)
    began = time.monotonic()
    failures: list[str] = []
    done = struck = acknowledged = 0
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(partial(_run_one, seed), items):
            done += 1
            struck += result.struck
            acknowledged += result.acknowledged
            if result.failure:
                failures.append(f"--first {result.call} --calls {result.call} --nodes {result.nodes}: {result.failure}")
                print(failures[-1], flush=True)
            if time.monotonic() - began > TIME_LIMIT_S:
                pool.shutdown(cancel_futures=True)
                break
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    summary = {
        "target": "powercut",
        "ok": not failures and done == len(items),
        "runs": done,
        "struck": struck,
        "acknowledged": acknowledged,
        "failures": failures[:10],
        "failed": len(failures),
        "seed": seed,
        "commit": commit.stdout.strip(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(summary))
    sys.exit(0 if summary["ok"] else 1)


if __name__ == "__main__":
    main()
