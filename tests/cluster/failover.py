"""How long writes wait when a node is killed or stands still, on a real cluster under load.

    python tests/cluster/failover.py --trials 100 --pause-s 60 --seed 1

starts three nodes on ports and data of their own, with writers for every data group through every node. Then

* `trials` times the leader of a data group is killed (-9) and started again. *Resumed* is the time from the kill until
  each writer of that group through a living node has been acknowledged a write that it began after the kill (or that
  waited for the failover). Writes of groups led elsewhere are measured in the same window, without the restart;
* a node is killed, and later stopped (SIGSTOP), for `pause-s`: the p99 of the groups that it does not lead is compared
  with that of as long a time before.

At the end every acknowledged point is asked for through every port, and the replicas' digests are compared. Prints one
JSON object as its last line; exit 0 only if every limit below holds and nothing is missing.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RESUMED_S_MAX, RESUMED_P95_S_MAX = 4.0, 2.0
ELSEWHERE_P999_MS_MAX = 300.0
P99_RATIO_MAX = 2.0
P99_FLOOR_MS = 20.0  # below, the p99 of a busy machine says nothing: it may double by itself
WINDOW_S = 4.5  # after a kill, until the node is started again
SETTLE_S = 1.0
BALANCED_S_MAX = 60.0
GAP_S = 0.03  # between two calls of a writer
WRITERS_A_GROUP_AND_NODE = 2
CALL_S_MAX = 30.0
DOUBLE = 4
PROBLEMS_SHOWN = 12
SLOW_S = 2.0  # a call that takes longer is shown, whenever it was
SLOW_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Call:
    """One write: of which group, through which node, when (time.monotonic), and what was wrong with it."""

    group: int
    node: int
    began: float
    ended: float
    error: str


@dataclass(eq=False)
class Writer:
    """Writes a device of one group through one node, a row a call; goes on after whatever fails."""

    device: str
    group: int
    node: int
    port: int
    load: ModuleType
    calls: list[Call] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    connection: Any = None

    async def run(self, stopped: asyncio.Event) -> None:
        row = 0
        while not stopped.is_set():
            row += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    error = await self._write(row)
            except (OSError, EOFError, TimeoutError) as failed:
                error = repr(failed)
                self.close()
            if error:
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.append(row)
            self.calls.append(Call(self.group, self.node, began, time.monotonic(), error))
            await asyncio.sleep(GAP_S)
        self.close()

    async def _write(self, row: int) -> str:
        types = self.load.t
        if self.connection is None:
            self.connection = await self.load.Connection.open(self.port)
        values = struct.pack(">bd", DOUBLE, float(row))
        request = types.TSInsertRecordReq(self.connection.session, self.device, ["v"], values, row)
        status = await self.connection.call("insertRecord", request)
        return "" if status.code in self.load.GOOD else f"{status.code}: {status.message}"

    def close(self) -> None:
        if self.connection is not None:
            self.connection.writer.close()
            self.connection = None


class Trial:
    """Writers on a running cluster, and what is done to its nodes."""

    def __init__(self, cluster: Any, load: ModuleType, seed: int) -> None:
        self.cluster = cluster
        self.load = load
        self.random = random.Random(seed)
        self.writers: list[Writer] = []
        self.problems: list[str] = []
        self.resumed: list[float] = []
        self.elsewhere: list[float] = []
        self.leader_of_meta_killed = 0
        self.began = time.monotonic()
        self.events: list[tuple[float, str]] = []
        self._texts = {
            f"127.0.0.1:{member.meta_port}:{member.data_port}:{member.client_port}": member.number
            for member in cluster.members
        }

    async def prepare(self) -> None:
        """Find, for each data group, a storage group whose points lie there, and make writers for it."""
        connection = await self.load.Connection.open(self.cluster.ports[0])
        wanted = set(self._texts.values())
        for number in range(100):
            path = f"root.failover{number}"
            status = await connection.call("setStorageGroup", connection.session, path)
            if status.code not in self.load.GOOD:
                raise RuntimeError(f"{path}: {status.message}")
            answer = json.loads(self._tool("--json", "partition", "-path", path, "-st", "0", "-et", "1"))
            group = self._texts[answer["partitions"][0][2][0]]
            if group in wanted:
                wanted.remove(group)
                self._make_writers(path, group)
            if not wanted:
                connection.writer.close()
                return
        raise RuntimeError(f"no storage group lies in the data groups {sorted(wanted)}")

    def _make_writers(self, path: str, group: int) -> None:
        for node, port in enumerate(self.cluster.ports, 1):
            for number in range(WRITERS_A_GROUP_AND_NODE):
                self.writers.append(Writer(f"{path}.n{node}w{number}", group, node, port, self.load))

    def _tool(self, *words: str, node: int = 1) -> str:
        run = self.cluster.nodetool(*words, node=node)
        if not run.stdout:
            raise RuntimeError(f"nodetool {' '.join(words)}: {run.stderr}")
        return str(run.stdout)

    async def leaders(self) -> dict[int, int]:
        """Group -> the node that leads it, once every group of the cluster has a leader that all know."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            rows = json.loads(await asyncio.to_thread(self._tool, "--json", "groups"))["groups"]
            led = {row["group"]: self._texts[row["node"]] for row in rows if row["role"] == "leader"}
            if len(led) == len(self._texts) + 1 and all(row["group"] >= 0 for row in rows):
                return led
            await asyncio.sleep(0.1)
        raise RuntimeError("the groups have no leaders after 30 s")

    async def _spread_leaders(self) -> dict[int, int]:
        """The leaders, once the nodes have balanced them: each node leads a data group."""
        deadline = time.monotonic() + BALANCED_S_MAX
        while time.monotonic() < deadline:
            led = await self.leaders()
            if {node for group, node in led.items() if group} == set(self._texts.values()):
                return led
            await asyncio.sleep(0.5)
        raise RuntimeError(f"after {BALANCED_S_MAX:g} s the leaders are not spread over the nodes: {led}")

    # --- what is done -------------------------------------------------------------------------------------------------

    async def kill_a_leader(self) -> None:
        led = await self.leaders()
        group = self.random.choice(sorted(set(led) - {0}))
        victim = led[group]
        self.leader_of_meta_killed += led[0] == victim
        moment = time.monotonic()
        self._note(f"kill {victim}, leaders {led}")
        await asyncio.to_thread(self.cluster.kill, victim)
        await asyncio.sleep(WINDOW_S)
        end = time.monotonic()
        for other in (other for other, leader in led.items() if other and leader == victim):
            self.resumed.append(self._resumed(other, victim, moment, end))
        for call in self._calls(victim, moment, end):
            if led[call.group] != victim:
                self.elsewhere.append(call.ended - call.began)
        await self._restart(victim)
        await asyncio.sleep(SETTLE_S)

    async def _restart(self, node: int) -> None:
        self._note(f"start {node}")
        self.cluster.launch(node)
        await asyncio.to_thread(self.cluster.wait)
        self._note(f"{node} serves")

    def _note(self, event: str) -> None:
        self.events.append((time.monotonic() - self.began, event))

    def slow(self) -> list[str]:
        """The slowest calls: seconds since the beginning, of which group, through which node, what was done then."""
        written = [call for writer in self.writers for call in writer.calls if not call.error]
        slow = [call for call in written if call.ended - call.began > SLOW_S]
        return [self._told(call) for call in sorted(slow, key=lambda call: call.began - call.ended)[:SLOW_SHOWN]]

    def _told(self, call: Call) -> str:
        low, high = call.began - self.began, call.ended - self.began
        events = [f"{moment:.1f} {event}" for moment, event in self.events if low - WINDOW_S < moment < high + 1]
        return f"{low:.1f} to {high:.1f} group {call.group} node {call.node}; {'; '.join(events)}"

    async def absence(self, how: str, pause_s: float) -> dict[str, Any]:
        """p99 of the groups that the victim does not lead: in the pause, and in as long a time before."""
        led = await self._spread_leaders()
        victim = self.random.choice(sorted({node for group, node in led.items() if group}))
        began = time.monotonic()
        await asyncio.sleep(pause_s)
        moment = time.monotonic()
        pid = self.cluster.pid(victim)
        os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        await asyncio.sleep(pause_s)
        end = time.monotonic()
        if how == "kill":
            await self._restart(victim)
        else:
            os.kill(pid, signal.SIGCONT)
        others = {group for group, node in led.items() if group and node != victim}
        before = [c.ended - c.began for c in self._calls(victim, began, moment) if c.group in others]
        during = [c.ended - c.began for c in self._calls(victim, moment, end) if c.group in others]
        if not before or not during:
            raise RuntimeError(f"no group is led by another node than {victim}: {led}")
        low, high = (float(np.percentile(times, 99)) * 1000 for times in (before, during))
        await asyncio.sleep(SETTLE_S)
        return {
            "p99_before_ms": round(low, 1),
            "p99_during_ms": round(high, 1),
            "ratio": round(high / low, 2),
            "max_during_ms": round(max(during) * 1000, 1),
            "calls": len(during),
            "ok": high <= max(P99_RATIO_MAX * low, P99_FLOOR_MS),
        }

    def _calls(self, victim: int, low: float, high: float) -> Iterator[Call]:
        """Calls through other nodes that were under way in this time; one that failed is a problem."""
        for writer in self.writers:
            if writer.node == victim:
                continue
            for call in reversed(writer.calls):
                if call.ended < low:
                    break
                if call.began <= high:
                    if call.error:
                        self.problems.append(f"a write of group {call.group} through node {call.node}: {call.error}")
                    yield call

    def _resumed(self, group: int, victim: int, moment: float, end: float) -> float:
        """Seconds from the kill until every writer of the group through a living node goes on."""
        longest = 0.0
        for writer in self.writers:
            if writer.group != group or writer.node == victim:
                continue
            # A call that the kill found on its way counts from the kill on, if it was not answered at once.
            after = [c.ended for c in writer.calls if not c.error and (c.began > moment or c.ended > moment + 0.2)]
            longest = max(longest, (min(after) if after else end) - moment)
        return longest

    # --- what must hold -----------------------------------------------------------------------------------------------

    async def verify(self) -> None:
        for port in self.cluster.ports:
            connection = await self.load.Connection.open(port)
            for writer in self.writers:
                answer = await connection.query(f"SELECT count(v) FROM {writer.device}")
                found = int.from_bytes(answer.queryDataSet.valueList[0], "big") if answer.queryDataSet else 0
                if answer.status.code != 200 or found < len(writer.acknowledged):
                    self.problems.append(
                        f"port {port}: {writer.device} has {found} points, {len(writer.acknowledged)} were acknowledged"
                    )
            connection.writer.close()
        for row in json.loads(self._tool("--json", "digest"))["groups"]:
            if not row["equal"] or len(row["digests"]) != len(self._texts):
                self.problems.append(f"group {row['group']}: digests {row['digests']}")
        self.problems += self.cluster.complaints()

    def figures(self) -> dict[str, Any]:
        resumed, elsewhere = self.resumed or [0.0], self.elsewhere or [0.0]
        p95, p999 = float(np.percentile(resumed, 95)), float(np.percentile(elsewhere, 99.9)) * 1000
        return {
            "failovers": len(self.resumed),
            "with_the_meta_leader": self.leader_of_meta_killed,
            "resumed_s": {"p50": _quantile(resumed, 50), "p95": round(p95, 3), "max": round(max(resumed), 3)},
            "within_2_s": sum(seconds <= RESUMED_P95_S_MAX for seconds in resumed),
            "elsewhere_ms": {
                "calls": len(self.elsewhere),
                "p50": _quantile(elsewhere, 50, 1000),
                "p99": _quantile(elsewhere, 99, 1000),
                "p99.9": round(p999, 1),
                "max": round(max(elsewhere) * 1000, 1),
            },
            "ok": p95 <= RESUMED_P95_S_MAX and max(resumed) <= RESUMED_S_MAX and p999 <= ELSEWHERE_P999_MS_MAX,
        }


def _quantile(values: Iterable[float], percent: float, scale: float = 1) -> float:
    return round(float(np.percentile(list(values), percent)) * scale, 3)


async def run(cluster: Any, load: ModuleType, trials: int, pause_s: float, seed: int) -> dict[str, Any]:
    """All of it on a running cluster: the figures, with `ok` and `problems`."""
    trial = Trial(cluster, load, seed)
    await trial.prepare()
    stopped = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for writer in trial.writers:
            tasks.create_task(writer.run(stopped))
        try:
            await asyncio.sleep(2 * SETTLE_S)
            for number in range(trials):
                await trial.kill_a_leader()
                print(f"trial {number + 1} of {trials}: resumed after {trial.resumed[-1]:.2f} s", file=sys.stderr)
            absences = {how: await trial.absence(how, pause_s) for how in ("kill", "stop")} if pause_s else {}
        finally:
            stopped.set()
    await trial.verify()
    figures = {**trial.figures(), **{f"absent_{how}": found for how, found in absences.items()}}
    ok = figures["ok"] and all(found["ok"] for found in absences.values()) and not trial.problems
    calls = sum(len(writer.calls) for writer in trial.writers)
    examples = list(dict.fromkeys(trial.problems))[:PROBLEMS_SHOWN]
    shown = {"problems": len(trial.problems), "examples": examples, "slow": trial.slow()}
    return {**figures, "calls": calls, **shown, "ok": ok}


def main() -> int:
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(Path(__file__).parent), str(root / "bench")]
    import load
    import processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--pause-s", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    options = parser.parse_args()
    minutes = (options.trials * (WINDOW_S + SETTLE_S + 4) + options.pause_s * 4 + 30) / 60
    print(
        f"three nodes; {options.trials} times the leader of a group is killed, then a node is away for "
        f"{options.pause_s:g} s, twice; about {minutes:.0f} minutes",
        file=sys.stderr,
    )
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="failover-"))
    with processes.Processes(directory) as cluster:
        figures = asyncio.run(run(cluster, load, options.trials, options.pause_s, options.seed))
        if not figures["ok"]:
            print(cluster.tails(), file=sys.stderr)
    return processes.concluded("failover", directory, figures, seed=options.seed, began=began, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
