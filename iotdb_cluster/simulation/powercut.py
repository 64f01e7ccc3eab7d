"""Power cuts at each of the first calls of a disk: three whole nodes, of which one, two or all lose power there.

    python -m iotdb_cluster.simulation.powercut --calls 2000 --jobs 2

A case is a number of a call and how many nodes are cut. The cluster is founded, clients insert, delete and flush
(`cut_load.py`); at that call of one node's disk the power goes, there and on the others that are cut, in the midst of
whatever they do. They are started again a moment later. Then every acknowledged point must be there, through every
node, nothing else, and the replicas must be equal. Cases of one call differ by the node and by what of the interrupted
call takes effect.

What comes before the cut is the same for all cases, so it runs once: at each call the process forks, the child has the
power cut and ends with the verdict, the parent goes on to the next call. A case alone (`run_cut`) is the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click

from iotdb_cluster.simulation import cut_load, smoke
from iotdb_cluster.simulation.client import SimulatedClient
from iotdb_cluster.simulation.forks import Forks
from iotdb_cluster.simulation.swarm import cheap_passwords
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

__all__ = ["Case", "CutResult", "run_cut", "run_cuts"]

NODES = smoke.NODES
WRITERS = 2
UNTIL_CUT_MS = 120_000
DARK_MS = 700  # before the nodes that lost power start again
AFTER_MS = 1_000  # of load once they run
SERVES_MS = 60_000
CASE_LIMIT_S = 120
TIME_LIMIT_S = 7_200
FAILURE_CHARS = 2_000
PROGRESS_RUNS = 250

Case = tuple[int, int]  # number of a call, how many nodes are cut


@dataclass(slots=True)
class CutResult:
    """`struck`: whether the call was reached. `failure` says what was wrong, empty where nothing was."""

    call: int
    nodes: int
    struck: bool = False
    acknowledged: int = 0
    deletes: int = 0
    digest: str = ""  # of all events
    failure: str = ""


class _Run:
    """One cluster and what was written to it."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.names = [smoke._name(number) for number in range(1, NODES + 1)]
        self.points = cut_load.Points()
        self.victims: list[str] = []
        self.struck = False
        for number, name in enumerate(self.names, 1):
            simulation.add_node(name, smoke._main(number, False), start=False)

    def cut(self, case: Case) -> None:
        """Cut the power at that call, which is yet to come, of the disk that is concerned."""
        call, nodes = case
        first = call % NODES
        self.victims = [self.names[(first + step) % NODES] for step in range(nodes)]
        disk = self.simulation.nodes[self.victims[0]].disk
        disk.cut_at = call
        told = disk.on_cut
        disk.on_cut = lambda: self._cut(told)

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

    def carry_out(self, over: Callable[[], bool]) -> None:
        """Everything, from the foundation to the verdict, which it raises; without one where `over` before a cut."""
        simulation = self.simulation
        for name in self.names:
            simulation.restart(name)
        tasks = [
            simulation.spawn(cut_load.write(self._clients(f"writer{number}"), number, self.points))
            for number in range(WRITERS)
        ]
        tasks.append(simulation.spawn(cut_load.flush(self._clients("flusher"), self.points)))
        simulation.run_until(lambda: self.struck or over(), UNTIL_CUT_MS)
        if not self.struck:
            return
        simulation.run_until(DARK_MS)
        for name in self.names:
            if not simulation.is_running(name):
                simulation.restart(name)
        simulation.run_until(AFTER_MS)
        self.points.stop = True
        simulation.run_until(lambda: all(task.done() for task in tasks), SERVES_MS)
        world = simulation.world("client")
        simulation.run(smoke._serving(world), SERVES_MS)
        simulation.run(smoke._verify(world, self.points), SERVES_MS)

    def _clients(self, name: str) -> list[SimulatedClient]:
        world: World = self.simulation.world(name)
        return [SimulatedClient(world, node, smoke.CLIENT_PORT, 5_000) for node in self.names]

    def result(self, case: Case, failure: str = "") -> CutResult:
        return CutResult(
            *case, self.struck, self.points.count(), self.points.deletes, self.simulation.digest(), failure
        )


def run_cut(call: int, nodes: int, seed: int = 1) -> CutResult:
    """Cut the power of `nodes` nodes at the `call`-th changing call of a disk."""
    with cheap_passwords(), Simulation(seed, debug=False) as simulation:
        run = _Run(simulation)
        run.cut((call, nodes))
        return _judge(run, (call, nodes))


def _judge(run: _Run, case: Case) -> CutResult:
    try:
        run.carry_out(lambda: False)
    except Exception as error:
        return run.result(case, f"{type(error).__name__}: {error}")
    return run.result(case)


def run_cuts(
    cases: Sequence[Case],
    told: Callable[[CutResult], None],
    *,
    seed: int = 1,
    jobs: int = 1,
    limit_s: float = TIME_LIMIT_S,
) -> None:
    """All cases, from one run that forks at each of their calls; `told` hears of each. Ends early after `limit_s`."""
    ends = time.monotonic() + limit_s
    forks = Forks(jobs, CASE_LIMIT_S, lambda case, answer, status: told(_answered(case, answer, status)))
    wanted = set(cases)
    with cheap_passwords(), Simulation(seed, debug=False) as simulation:
        run = _Run(simulation)
        mine: list[Case] = []

        def at_call(first: int, call: int) -> None:
            """Before a call of the disk of the node at `first`."""
            if forks.is_child or call % NODES != first:
                return
            for nodes in range(1, NODES + 1):
                if (call, nodes) in wanted and time.monotonic() < ends:
                    wanted.discard((call, nodes))
                    if forks.fork((call, nodes)):
                        mine.append((call, nodes))
                        run.cut((call, nodes))
                        return

        for first, name in enumerate(run.names):
            simulation.nodes[name].disk.before_change = partial(at_call, first)
        failure = ""
        try:
            run.carry_out(lambda: not wanted or time.monotonic() > ends)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if mine:
            forks.answer(json.dumps(asdict(run.result(mine[0], failure[:FAILURE_CHARS]))).encode())
    forks.wait()
    if failure:
        raise AssertionError(f"without a power cut: {failure}")


def _answered(case: Case, answer: bytes, status: int) -> CutResult:
    if not answer:
        return CutResult(*case, failure=f"its process ended without a verdict, wait status {status}")
    return CutResult(**json.loads(answer))


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
    cases = [(call, count) for call in range(first, calls + 1, step) for count in numbers]
    print(f"{len(cases)} power cuts of three simulated nodes; at most {TIME_LIMIT_S // 60} minutes", flush=True)
    began = time.monotonic()
    failures: list[str] = []
    totals = Counter[str]()

    def told(result: CutResult) -> None:
        totals.update(runs=1, struck=result.struck, acknowledged=result.acknowledged, deletes=result.deletes)
        if result.failure:
            failures.append(f"--first {result.call} --calls {result.call} --nodes {result.nodes}: {result.failure}")
            print(failures[-1], flush=True)
        if totals["runs"] % PROGRESS_RUNS == 0:
            print(f"{totals['runs']} done, {len(failures)} failed", flush=True)

    run_cuts(cases, told, seed=seed, jobs=jobs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    summary = {
        "target": "powercut",
        "ok": not failures and totals["struck"] == len(cases),
        **totals,
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
