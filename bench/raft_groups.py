"""What many Raft groups cost: 1, 30 and 300 groups on three nodes, idle and under load; one JSON line at the end.

`python bench/raft_groups.py [--groups 1,30,300] [--seconds 5] [--idle-seconds 10] [--clients 300]`

Three processes on loopback, each the shipped driver, durable log, peer connections and leader finding, around a state
machine that only counts. The clients are spread evenly over the nodes and the groups; each proposes entries of 1,000
bytes one after another through its node, which forwards them to the group's leader where that is another node, as a
coordinator does. Idle CPU is that of a process while nobody writes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group, Outcome
from iotdb_cluster.cluster.log import Compact, DurableLog, Install, LogOptions
from iotdb_cluster.cluster.outbox import PeerOutbox
from iotdb_cluster.cluster.peers import NodePeers, PeerPorts
from iotdb_cluster.cluster.proposals import GROUP
from iotdb_cluster.cluster.replicas import Replicas
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.errors import CallerError, OutcomeUnknown
from iotdb_cluster.packing import pack
from iotdb_cluster.raft import ConfState, Entries, RawNode, Snapshot
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.tools.node import GC_THRESHOLDS
from iotdb_cluster.world import real_world

NODES = (1, 2, 3)
PAYLOAD = b"x" * 1_000
KEPT_ENTRIES = 100
COMPACT_STEP = 500
CALL_MS = 10_000
TARGET_RATIO = 0.7
TARGET_IDLE = 0.03


class Counter:
    """The state machine."""

    def __init__(self) -> None:
        self.applied = 0

    def apply(self, entries: Entries) -> list[Outcome]:
        self.applied += len(entries)
        return [_DONE] * len(entries)

    def configured(self, configuration: ConfState) -> None:
        """The members never change here."""

    def snapshot(self) -> Snapshot:
        raise AssertionError("nobody falls behind here")

    def stage(self, snapshot: Snapshot) -> None:
        raise AssertionError(f"nobody falls behind here, but {snapshot} came")

    install = stage


_DONE = Outcome()


class BenchNode:
    """One process."""

    def __init__(self, node: int, ports: list[int], directory: str, groups: int) -> None:
        self.node = node
        self.group_count = groups
        self.world = real_world()
        addresses = {n: NodeAddress("127.0.0.1", ports[4 * n - 4], ports[4 * n - 2], 0) for n in NODES}
        self.settings = Settings(addresses[node], tuple(addresses.values()), directory)
        self.identity = PeerIdentity(node, node.to_bytes(8, "big"), "", "bench", 1)
        self.peers = NodePeers(self.world, self.identity, addresses.get, self.settings.connection_timeout_ms)
        self.calls = Calls(node, self.peers)
        self.calls.handlers["propose"] = self.propose
        self.compacted: dict[int, int] = {}
        self.waits_ms: list[float] = []
        self.failures = 0
        self.stack = AsyncExitStack()

    async def start(self) -> None:
        world, settings = self.world, self.settings
        options = LogOptions(segment_bytes=settings.log_segment_bytes)
        self.log = DurableLog.open(
            world.files, settings.wal_path, world.random, options, workers=world.workers, on_fault=fault
        )
        self.log_task = asyncio.create_task(self.log.run())
        outbox = PeerOutbox(self.node, self.node, self.peers.send_raft)
        self.driver = Driver(world, self.log, outbox, self.node, settings.heartbeat_interval_ms, fault)
        self.replicas = Replicas(
            world, settings, self.log, self.driver, {}, {n: n for n in NODES}, lambda: None, self.ignore, self.ignore
        )
        ports = PeerPorts(world, self.calls.handlers, self.replicas.receive, lambda _: None, fault)
        await ports.start("127.0.0.1", settings.address)
        self.leaders = Leaders(world, self.leader_of, lambda _: list(NODES))
        for number in range(1, self.group_count + 1):
            await self.open(number)
        self.driver.start()
        self.sweeper = asyncio.create_task(self.sweep())

    async def open(self, number: int) -> None:
        replica = 10 * number + self.node
        view = self.log.view(replica)
        done = asyncio.get_running_loop().create_future()
        voters = ConfState(tuple(10 * number + n for n in NODES))
        self.log.submit([Install(replica, 1, 1, voters)], lambda: done.set_result(None))
        await done
        raw = RawNode(self.replicas.config(replica, view, 1))
        nodes = {10 * number + n: n for n in NODES}
        self.driver.add(Group(number, 1, replica, raw, view, Counter(), nodes, applied=1))

    def ignore(self, what: Any) -> None:
        """Of the life of a whole node."""

    def leader_of(self, number: int) -> int:
        return self.driver.groups[number].leader_node

    async def propose(self, body: memoryview, deadline: Deadline) -> bytes:
        """As `serving.WriteServing` does, without a state machine's validation."""
        (number,) = GROUP.unpack_from(body)
        (future,) = self.driver.propose(self.driver.groups[number], [bytes(body[GROUP.size :])])
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await future
        except TimeoutError:
            raise OutcomeUnknown(f"group {number} has not decided within the time") from None
        return pack(None)

    async def sweep(self) -> None:
        """Let the log forget, so that its segments go round."""
        while True:
            await asyncio.sleep(1)
            for group in self.driver.groups.values():
                keep = group.applied - KEPT_ENTRIES
                if keep - self.compacted.get(group.id, 0) >= COMPACT_STEP:
                    self.compacted[group.id] = keep
                    self.log.submit([Compact(group.replica, keep, group.log.term(keep))], lambda: None)

    # --- what the parent asks -----------------------------------------------------------------------------------------

    async def ready(self) -> dict[str, Any]:
        for group in self.driver.groups.values():
            await self.driver.read_barrier(group)
        return {"led": sum(group.leads for group in self.driver.groups.values())}

    async def idle(self, seconds: float) -> dict[str, Any]:
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        return {"cpu": (time.process_time() - cpu) / (time.monotonic() - began)}

    async def load(self, seconds: float, clients: int) -> dict[str, Any]:
        self.waits_ms, self.failures = [], 0
        end = time.monotonic() + seconds
        mine = [client for client in range(clients) if client % len(NODES) == self.node - 1]
        cpu, batches = time.process_time(), self.log.batches_written
        # Client i writes to group i // 3 (mod groups): each group is asked through every node.
        tasks = [asyncio.create_task(self.client(1 + client // 3 % self.group_count, end)) for client in mine]
        await asyncio.wait(tasks)
        waits = sorted(self.waits_ms)
        return {
            "done": len(waits),
            "failures": self.failures,
            "cpu_s": time.process_time() - cpu,
            "syncs": self.log.batches_written - batches,
            "p50_ms": waits[len(waits) // 2] if waits else 0.0,
            "p99_ms": waits[len(waits) * 99 // 100] if waits else 0.0,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    async def client(self, number: int, end: float) -> None:
        body = GROUP.pack(number) + PAYLOAD

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self.calls.call(node, "propose", body, within)

        while (began := time.monotonic()) < end:
            try:
                await self.leaders.run(number, attempt, Deadline(self.world, CALL_MS), repeatable=True)
                self.waits_ms.append((time.monotonic() - began) * 1000)
            except CallerError:
                self.failures += 1


def fault(error: BaseException) -> None:
    print(json.dumps({"fault": repr(error)}), flush=True)


async def run_node(arguments: argparse.Namespace) -> None:
    node = BenchNode(arguments.node, json.loads(arguments.ports), arguments.directory, int(arguments.groups))
    await node.start()
    gc.freeze()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked = json.loads(line)
        answer = await getattr(node, asked.pop("ask"))(**asked)
        print(json.dumps(answer), flush=True)


# --- the parent -------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """The first of 2 by 2 neighbours a node, below the range that connections get theirs from."""
    rng = random.Random()
    while True:
        base = rng.randrange(12_000, 30_000, 20)
        sockets = []
        try:
            sockets.extend(socket.create_server(("127.0.0.1", port)) for port in range(base, base + count))
            return list(range(base, base + count))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()


class Trial:
    """Three processes with a number of groups."""

    def __init__(self, groups: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="raft-groups-", dir="/tmp"))
        ports = json.dumps(free_ports(12))
        words = [sys.executable, __file__, "--ports", ports, "--groups", str(groups)]
        self.processes = [
            subprocess.Popen(
                [*words, "--node", str(node), "--directory", str(self.directory / str(node))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for node in NODES
        ]

    def ask(self, name: str, **words: Any) -> list[dict[str, Any]]:
        for process in self.processes:
            process.stdin.write(json.dumps({"ask": name, **words}) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        answers = []
        for process in self.processes:
            line = process.stdout.readline()  # type: ignore[union-attr]
            answers.append(json.loads(line) if line else {"fault": f"exit {process.wait(5)}"})
        for answer in answers:
            if "fault" in answer:
                raise SystemExit(f"a node failed: {answer['fault']}")
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def measure(groups: int, arguments: argparse.Namespace) -> dict[str, Any]:
    trial = Trial(groups)
    try:
        led = [answer["led"] for answer in trial.ask("ready")]
        time.sleep(2)
        idle = [answer["cpu"] for answer in trial.ask("idle", seconds=arguments.idle_seconds)]
        trial.ask("load", seconds=1.0, clients=arguments.clients)
        answers = trial.ask("load", seconds=arguments.seconds, clients=arguments.clients)
    finally:
        trial.close()
    done = sum(answer["done"] for answer in answers)
    return {
        "groups": groups,
        "led": led,
        "idle_cpu_of_a_core": [round(one, 4) for one in idle],
        "commits_per_s": round(done / arguments.seconds),
        "fdatasyncs_per_s": round(sum(answer["syncs"] for answer in answers) / arguments.seconds),
        "cpu_us_per_commit": round(sum(answer["cpu_s"] for answer in answers) / max(1, done) * 1e6, 1),
        "failures": sum(answer["failures"] for answer in answers),
        "p50_ms": round(max(answer["p50_ms"] for answer in answers), 1),
        "p99_ms": round(max(answer["p99_ms"] for answer in answers), 1),
        "rss_mb": round(max(answer["rss_mb"] for answer in answers)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])  # type: ignore[union-attr]
    parser.add_argument("--groups", default="1,30,300")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        sys.setswitchinterval(0.001)
        gc.set_threshold(*GC_THRESHOLDS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_node(arguments))
        return 0
    results = []
    for groups in map(int, arguments.groups.split(",")):
        results.append(measure(groups, arguments))
        print(json.dumps(results[-1]), flush=True)
    few, many = results[0], results[-1]
    ratio = many["commits_per_s"] / max(1, few["commits_per_s"])
    idle = max(many["idle_cpu_of_a_core"])
    ok = ratio >= TARGET_RATIO and idle < TARGET_IDLE and not any(result["failures"] for result in results)
    print(json.dumps({"bench": "raft_groups", "ok": ok, "ratio": round(ratio, 3), "idle": idle, "trials": results}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
