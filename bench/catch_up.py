"""A follower that was down while much was written catches up by snapshots, while writes go on.

    python bench/catch_up.py --mb 2048 [--seed 1] [--keep]

starts three nodes on ports and data of their own, writes tablets until memory has its usual size, kills one node (-9),
writes `mb` MiB of values and times, starts the node again, and goes on writing (`--pace-mb-s`) until it has caught up.
The memory (RSS) of the two others is looked at ten times a second: it may grow by `GROWTH_BYTES_MAX` over the most that
it was before the kill (but in short forms, up to `SHORT_MB_MAX`, where memory has not got its size yet). At the end
every row is counted through every port and the replicas' digests are compared.
Prints one JSON object as its last line; exit 0 only if all of that holds and snapshots were in fact installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

MIB = 1 << 20
ROWS, SENSORS, DEVICES_A_CLIENT, CLIENTS = 1_000, 10, 5, 6
TABLET_BYTES = ROWS * (SENSORS + 1) * 8
GROWTH_BYTES_MAX = 100 * MIB
WARM_BYTES = 512 * MIB  # is written first, so that memtables and caches have the size that they keep
SHORT_WARM_BYTES = 16 * MIB  # in the short form, which says nothing of memory
SHORT_MB_MAX = 200
AWAY = 3  # the node that is killed
CAUGHT_UP_S_MAX = 900
FORGOTTEN_S_MAX = 60
DIGEST_S_MAX = 1_800
NEAR_ENTRIES = 500  # so many entries behind while it is written to is caught up
INSTALLED = re.compile(r"group-[0-9]+-[0-9]+-[0-9]+\.[0-9]{20}")


class Memory(threading.Thread):
    """The most memory that processes held, by phase."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self.phase = "warm"
        self.most: dict[str, dict[int, int]] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            most = self.most.setdefault(self.phase, {})
            for pid in self._pids:
                most[pid] = max(most.get(pid, 0), resident_bytes(pid))

    def growth(self, phase: str) -> int:
        """Of the process that grew most over what it was in the warm phase."""
        return max(self.most[phase][pid] - self.most["warm"][pid] for pid in self._pids)


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


@dataclass
class Writer:
    """One client: tablets for devices of its own, in order, each written until it is acknowledged."""

    number: int
    load: ModuleType
    ports: list[int]
    acknowledged: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    _connection: Any = None

    def device(self, tablet: int) -> str:
        return f"root.c{self.number}.d{tablet % DEVICES_A_CLIENT}"

    async def write(self, tablets: int, pause_s: float, stopped: asyncio.Event) -> None:
        """So many tablets, or until stopped where that is 0."""
        written = 0
        while (written < tablets or not tablets) and not stopped.is_set():
            try:
                async with asyncio.timeout(60):
                    status = await self._one()
                if status.code in self.load.GOOD:
                    self.acknowledged += 1
                    written += 1
                    if pause_s:
                        await asyncio.sleep(pause_s)
                    continue
                error = f"{status.code} {status.message}"
                await asyncio.sleep(0.1)
            except (OSError, EOFError, TimeoutError) as failed:
                error = type(failed).__name__
                self.close()
                await asyncio.sleep(0.2)
            self.errors[error] = self.errors.get(error, 0) + 1

    async def _one(self) -> Any:
        if self._connection is None:
            self._connection = await self.load.Connection.open(self.ports[self.number % len(self.ports)])
        tablet = self.acknowledged
        rng = np.random.default_rng((self.number, tablet))
        times = (np.arange(ROWS) + (tablet // DEVICES_A_CLIENT) * ROWS) * self.load.STEP_MS + self.load.START_MS
        values = self.load.walk(rng, (SENSORS, ROWS)).astype(">f8").tobytes()
        request = self.load.t.TSInsertTabletReq(
            self._connection.session, self.device(tablet), [f"s{i}" for i in range(SENSORS)], values,
            times.astype(">i8").tobytes(), [self.load.DOUBLE] * SENSORS, ROWS,
        )  # fmt: skip
        return await self._connection.call("insertTablet", request)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.writer.close()
            self._connection = None

    def rows(self) -> dict[str, int]:
        """Of each device."""
        per = {self.device(d): 0 for d in range(min(DEVICES_A_CLIENT, self.acknowledged))}
        for name, number in zip(per, range(DEVICES_A_CLIENT), strict=False):
            per[name] = ROWS * ((self.acknowledged - number + DEVICES_A_CLIENT - 1) // DEVICES_A_CLIENT)
        return per


class Trial:
    """What is done to a running cluster of three nodes."""

    def __init__(self, cluster: Any, load: ModuleType, megabytes: int, pace_mb_s: float) -> None:
        self.cluster = cluster
        self.load = load
        self.bytes = megabytes * MIB
        self.short = megabytes <= SHORT_MB_MAX
        self.pause_s = CLIENTS * TABLET_BYTES / (pace_mb_s * MIB)
        here = [port for number, port in enumerate(cluster.ports, 1) if number != AWAY]
        self.writers = [Writer(number, load, here) for number in range(CLIENTS)]
        self.memory = Memory([cluster.pid(n) for n in range(1, len(cluster.ports) + 1) if n != AWAY])
        self.away = f":{cluster.ports[AWAY - 1]}"  # as the names of its rows end
        self.problems: list[str] = []
        self.seconds: dict[str, float] = {}

    async def _write(self, size: int) -> None:
        tablets = max(1, size // TABLET_BYTES // CLIENTS)
        await asyncio.gather(*(writer.write(tablets, 0, asyncio.Event()) for writer in self.writers))

    async def run(self) -> None:
        self.memory.start()
        await self._timed("warm", self._write(SHORT_WARM_BYTES if self.short else WARM_BYTES))
        had = {row["group"]: row["applied"] for row in self.groups() if row["node"].endswith(self.away)}
        await asyncio.to_thread(self.cluster.kill, AWAY)
        await self._timed("away", self._write(self.bytes))
        stopped = asyncio.Event()
        going = [asyncio.create_task(writer.write(0, self.pause_s, stopped)) for writer in self.writers]
        await self._timed("forgetting", self._forgotten(had))
        await self._timed("catching up", self._catch_up())
        stopped.set()
        await asyncio.gather(*going)
        self.memory.stopped.set()
        self.memory.join()
        await self._timed("verify", self._verify())

    async def _timed(self, phase: str, work: Any) -> None:
        began = time.monotonic()
        self.memory.phase = phase
        print(f"{phase} ...", file=sys.stderr)
        await work
        self.seconds[phase] = round(time.monotonic() - began, 1)
        print(f"{phase}: {self.seconds[phase]} s", file=sys.stderr)

    async def _forgotten(self, had: dict[int, int]) -> None:
        """Until every leader's log begins behind what the node had: a node does not count as away at once."""
        deadline = time.monotonic() + FORGOTTEN_S_MAX
        while time.monotonic() < deadline:
            leaders = {
                row["group"]: row["first"] for row in await asyncio.to_thread(self.groups) if row["role"] == "leader"
            }
            if had and all(leaders.get(group, 0) > index + 1 for group, index in had.items()):
                return
            await asyncio.sleep(0.5)
        self.problems.append(f"after {FORGOTTEN_S_MAX} s the logs still hold what the node lacks")

    def groups(self) -> list[dict[str, Any]]:
        """The replicas of the data groups as nodetool shows them."""
        told = self.cluster.nodetool("--json", "groups")
        return [] if told.returncode else [row for row in json.loads(told.stdout)["groups"] if row["group"] > 0]

    async def _catch_up(self) -> None:
        self.cluster.launch(AWAY)
        deadline = time.monotonic() + CAUGHT_UP_S_MAX
        while time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            behind = await asyncio.to_thread(self.behind)
            if behind is not None and behind <= NEAR_ENTRIES:
                return
        self.problems.append(f"node {AWAY} has not caught up within {CAUGHT_UP_S_MAX} s: {behind} entries behind")

    def behind(self) -> int | None:
        """Entries that the node lacks in the group where it lacks most; None while that is not known."""
        rows = self.groups()
        mine = {row["group"]: row["applied"] for row in rows if row["node"].endswith(self.away)}
        most = {group: max(row["commit"] for row in rows if row["group"] == group) for group in mine}
        if len(mine) < len(self.cluster.ports):
            return None
        return max(most[group] - applied for group, applied in mine.items())

    async def _verify(self) -> None:
        rows = {device: count for writer in self.writers for device, count in writer.rows().items()}
        for port in self.cluster.ports:
            connection = await self.load.Connection.open(port)
            for device, count in rows.items():
                answer = await connection.query(f"SELECT count(s0) FROM {device}")
                found = int.from_bytes(answer.queryDataSet.valueList[0], "big") if answer.queryDataSet else -1
                if found != count:
                    self.problems.append(f"port {port}: {device} has {found} rows of {count}: {answer.status.message}")
            connection.writer.close()
        told = await asyncio.to_thread(self.cluster.nodetool, "--json", "digest", timeout_s=DIGEST_S_MAX)
        groups = json.loads(told.stdout)["groups"] if told.stdout else []
        for row in groups:
            if not row["equal"] or len(row["digests"]) != len(self.cluster.ports):
                self.problems.append(f"group {row['group']}: digests {row['digests']}")
        if not groups:
            self.problems.append(f"no digests: {told.stderr}")
        if not self.installed():
            self.problems.append("no snapshot was installed")
        for writer in self.writers:
            writer.close()

    def installed(self) -> int:
        """Replicas of the node whose directory is a received snapshot's."""
        names = self.cluster.member(AWAY).directory.rglob("group-*")
        return sum(bool(INSTALLED.fullmatch(path.name)) for path in names)

    def figures(self) -> dict[str, Any]:
        growth = {
            phase: self.memory.growth(phase) // MIB for phase in self.memory.most if phase not in ("warm", "verify")
        }
        if max(growth.values()) * MIB > GROWTH_BYTES_MAX and not self.short:
            self.problems.append(f"a node's memory grew by {growth} MiB")
        return {
            "mb": self.bytes // MIB,
            "rss_warm_mb": max(self.memory.most["warm"].values()) // MIB,
            "growth_mb": growth,
            "snapshots": self.installed(),
            "phases_s": self.seconds,
            "tablets": sum(writer.acknowledged for writer in self.writers),
            "errors": {error: count for writer in self.writers for error, count in writer.errors.items()},
            "problems": len(self.problems),
            "examples": self.problems[:5],
            "ok": not self.problems,
        }


def run(cluster: Any, load: ModuleType, megabytes: int, pace_mb_s: float) -> dict[str, Any]:
    """All of it on a running cluster: the figures, with `ok`."""
    trial = Trial(cluster, load, megabytes, pace_mb_s)
    asyncio.run(trial.run())
    return trial.figures()


def keys(megabytes: int) -> dict[str, Any]:
    """What the nodes are told: half of the volume fits in the log, so that it holds too little for the member."""
    return {"log_bytes_max": min(1024, megabytes // 2) * MIB}


def main() -> int:
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root / "bench"), str(root / "tests" / "cluster")]
    import load
    import processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=2048, help="MiB that are written while the node is away")
    parser.add_argument(
        "--pace-mb-s", type=float, default=4.0, help="MiB a second that are written while it catches up"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the data and logs where they are")
    parser.add_argument("--directory", default=None, help="where the data go; default: below the system's /tmp")
    options = parser.parse_args()
    print(
        f"three nodes; one is down while {options.mb} MiB are written, then catches up by snapshots; about "
        f"{1 + options.mb // 300} minutes, at most {CAUGHT_UP_S_MAX // 60 + options.mb // 100} minutes",
        file=sys.stderr,
    )
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="catch-up-", dir=options.directory))
    with processes.Processes(directory, **keys(options.mb)) as cluster:
        figures = run(cluster, load, options.mb, options.pace_mb_s)
        if not figures["ok"]:
            print(cluster.tails(), file=sys.stderr)
    return processes.concluded("catch-up", directory, figures, seed=options.seed, began=began, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
