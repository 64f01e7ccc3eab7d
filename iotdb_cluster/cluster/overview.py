"""What a node tells of itself and the cluster: the answers behind nodetool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.meta_forcing import FORCE_META
from iotdb_cluster.cluster.reading import applied_here, read_pinned, replica_here
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.snapshots import SnapshotProgress
from iotdb_cluster.errors import CallerError, CorruptData, OutcomeUnknown, Status
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.meta import NodeState
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.partition import partition_bounds
from iotdb_cluster.world import World

__all__ = ["SNAPSHOTS_CALL", "Overview"]

SNAPSHOTS_CALL = "snapshots"
PROBE_MS = 1_000  # a node that does not answer within is shown as off
DIGEST_MS = 600_000  # of one group: everything is read
PARTITIONS_SHOWN_MAX = 10_000


class Overview:
    """Answers of the nodetool port, and the calls `state` and `digest` between nodes."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        driver: Driver,
        meta: MetaAccess,
        machines: dict[int, DataMachine],
        calls: Calls,
        serving: Callable[[], bool],
        facts: Mapping[str, Any],
        transfers: Callable[[], list[SnapshotProgress]],
        waits: Callable[[int], str],
    ) -> None:
        """`waits(group)`: what a change of its members waits for, where this node leads it."""
        self._world = world
        self._settings = settings
        self._driver = driver
        self._meta = meta
        self._machines = machines
        self._calls = calls
        self._serving = serving
        self._facts = dict(facts)
        self._transfers = transfers
        self._waits = waits
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "ring": self._ring,
            "status": self._status,
            "host": self._host,
            "header": self._header,
            "partition": self._partition,
            "groups": self._groups,
            "digest": self._digest,
            "snapshots": self._snapshots,
        }

    def register(self, calls: Calls) -> None:
        calls.handlers.update(
            {"state": self._state_call, "digest": self._digest_call, SNAPSHOTS_CALL: self._snapshots_call}
        )

    def extend(self, commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]]) -> None:
        """Answer these commands too."""
        self._commands.update(commands)

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line of the nodetool port; raises CallerError."""
        command = request.get("command")
        if command == "health":
            return {
                **self._facts,
                "serving": self._serving(),
                "node": self._calls.node,
                "state": self._member_state(),
                "client_port": self._settings.address.client_port,
            }
        handler = self._commands.get(str(command))
        if handler is None:
            raise CallerError(Status.UNSUPPORTED_OPERATION, f"{command!r} is not a command of this port")
        if not self._meta.state.bootstrapped and command != FORCE_META:  # that looks at what is not committed too
            return {"forming": True}
        return await handler(request)

    def _deadline(self, timeout_ms: float) -> Deadline:
        return Deadline(self._world, timeout_ms)

    def _member_state(self) -> str:
        """What this node is to the cluster: joining, normal or leaving; empty before meta knows it."""
        known = self._meta.state.node(self._calls.node)
        return "" if known is None else str(known.state)

    def _text(self, node: int) -> str:
        found = self._meta.state.node(node)
        return f"node {node}" if found is None else NodeAddress(*found.address).text

    def _texts(self, group: GroupRecord) -> list[str]:
        return [self._text(node) for node in group.nodes]

    # --- the commands -------------------------------------------------------------------------------------------------

    async def _ring(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return {"nodes": [[node.id, self._text(node.id), str(node.state)] for node in self._meta.state.nodes]}

    async def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        nodes = self._meta.state.nodes
        alive = await asyncio.gather(*(self._is_alive(node.id) for node in nodes))
        rows = []
        for node, on in zip(nodes, alive, strict=True):
            shown = "on" if node.state is NodeState.NORMAL else str(node.state)
            rows.append([self._text(node.id), shown if on else "off"])
        return {"nodes": rows}

    async def _is_alive(self, node: int) -> bool:
        try:
            await self._calls.call(node, "state", pack(None), self._deadline(PROBE_MS))
        except CallerError:
            return False
        return True

    async def _host(self, request: dict[str, Any]) -> dict[str, Any]:
        state = self._meta.state
        counts = state.table.counts()
        shown = [
            group for group in state.groups if request.get("all") or group.replica_of(self._calls.node) is not None
        ]
        return {
            "groups": [[self._texts(group), counts.get(group.id, 0)] for group in shown],
            "ids": [group.id for group in shown],
        }

    async def _header(self, request: dict[str, Any]) -> dict[str, Any]:
        """The members of the group that a node heads, in the ring's order, and which of them leads."""
        number = int(request.get("group") or self._calls.node)
        group = self._meta.state.group(number)
        if group is None or not number:
            return {"known": False, "group": number}
        states = await asyncio.gather(*(self._state_of(node) for node in group.nodes))
        leaders = {
            node
            for node, rows in zip(group.nodes, states, strict=True)
            for row in rows
            if row["group"] == number and row["role"] == "leader"
        }
        nodes = [[node, self._text(node), node in leaders] for node in group.nodes]
        return {"known": True, "group": number, "nodes": nodes}

    async def _partition(self, request: dict[str, Any]) -> dict[str, Any]:
        state = self._meta.state
        group = state.storage_group_of(str(request.get("path", "")))
        if group is None:
            return {"known": False}
        if request.get("metadata"):
            owner, _ = state.owner_of_slot(state.slot_map.schema_slot_of(group.path))
            return {"known": True, "partitions": [[0, 0, self._texts(owner)]]}
        start, end = int(request["start"]), int(request["end"])
        interval = self._settings.partition_interval_ms
        first, last = start // interval, max(start, end) // interval
        if last - first >= PARTITIONS_SHOWN_MAX:
            raise CallerError(
                Status.ILLEGAL_PARAMETER, f"the range has {last - first + 1} partitions, give a shorter one"
            )
        rows = []
        for partition in range(first, last + 1):
            low, high = partition_bounds(partition, interval)
            owner, _ = state.owner_of_slot(state.slot_map.slot_of(group.path, partition))
            rows.append([max(low, start), min(high, max(start, end)), self._texts(owner)])
        return {"known": True, "partitions": rows}

    async def _groups(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        rows: list[dict[str, Any]] = []
        nodes = [node.id for node in self._meta.state.nodes]
        states = await asyncio.gather(*(self._state_of(node) for node in nodes))
        for node, groups in zip(nodes, states, strict=True):
            rows += [{**row, "node": self._text(node)} for row in groups]
        newest: dict[int, int] = {}
        for row in rows:
            newest[row["group"]] = max(newest.get(row["group"], 0), row["commit"])
        for row in rows:  # entries that are committed somewhere, and not applied there
            row["lag"] = max(0, newest[row["group"]] - row["applied"])
        rows.sort(key=lambda row: (row["group"], row["node"]))
        return {"groups": rows}

    async def _state_of(self, node: int) -> list[dict[str, Any]]:
        try:
            head, _ = unpack(await self._calls.call(node, "state", pack(None), self._deadline(PROBE_MS)))
        except CallerError:
            return [{"group": -1, "role": "off", "term": 0, "commit": 0, "applied": 0, "first": 0}]
        return list(head)

    async def _state_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        groups = [group for _, group in sorted(self._driver.groups.items())]
        return pack(
            [{**_described(group), "damaged": self._damaged(group), "waits": self._waits(group.id)} for group in groups]
        )

    def _damaged(self, group: Group) -> list[str]:
        """Units of which files are damaged here: which storage group and times, and why."""
        machine = self._machines.get(group.id)
        found: list[str] = []
        for unit, reason in sorted(machine.data.store.corrupt.items()) if machine is not None else ():
            known = self._meta.state.storage_group(unit.storage_group_id)
            path = f"storage group {unit.storage_group_id}" if known is None else known.path
            low, high = partition_bounds(unit.partition, self._settings.partition_interval_ms)
            found.append(f"{path} from {low} to {high}: {reason}")
        return found

    # --- snapshots ----------------------------------------------------------------------------------------------------

    async def _snapshots(self, request: dict[str, Any]) -> dict[str, Any]:
        """The snapshots that are being sent in the cluster: who to whom, how much of it, how fast."""
        del request
        nodes = [node.id for node in self._meta.state.nodes]
        answers = await asyncio.gather(*(self._ask_snapshots(node) for node in nodes))
        rows = [
            {**row, "from": self._text(node), "to": self._text(row["to"])}
            for node, answer in zip(nodes, answers, strict=True)
            for row in answer
        ]
        return {"snapshots": sorted(rows, key=lambda row: (row["group"], row["to"]))}

    async def _ask_snapshots(self, node: int) -> list[dict[str, Any]]:
        try:
            head, _ = unpack(await self._calls.call(node, SNAPSHOTS_CALL, pack(None), self._deadline(PROBE_MS)))
        except CallerError:
            return []
        return list(head)

    async def _snapshots_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        now = self._world.clock.monotonic_ms()
        return pack(
            [
                {
                    "group": one.group,
                    "to": one.node,
                    "index": one.index,
                    "done": one.done,
                    "total": one.total,
                    "bytes_per_s": round(1000 * one.sent / max(1.0, now - one.since_ms)),
                }
                for one in self._transfers()
            ]
        )

    # --- digests ------------------------------------------------------------------------------------------------------

    async def _digest(self, request: dict[str, Any]) -> dict[str, Any]:
        """Each group's content on each of its nodes, at one applied index."""
        del request
        return {"groups": [await self._digest_of(group) for group in self._meta.state.groups]}

    async def _digest_of(self, group: GroupRecord) -> dict[str, Any]:
        deadline = self._deadline(DIGEST_MS)
        index = 0
        for _ in range(20):
            answers = await asyncio.gather(*(self._ask_digest(group.id, node, index, deadline) for node in group.nodes))
            there = {node: answer for node, answer in zip(group.nodes, answers, strict=True) if answer is not None}
            indexes = {int(answer[0]) for answer in there.values()}
            if len(indexes) == 1:
                digests = {self._text(node): str(answer[1]) for node, answer in there.items()}
                equal = len(set(digests.values())) == 1
                return {"group": group.id, "applied": indexes.pop(), "digests": digests, "equal": equal}
            index = max(indexes, default=0)
        raise CallerError(Status.TIME_OUT, f"group {group.id} is written to all the time: ask again when it rests")

    async def _ask_digest(self, group: int, node: int, index: int, deadline: Deadline) -> list[Any] | None:
        body = pack({"group": group, "index": index})
        for last in (False, True):
            try:
                head, _ = unpack(await self._calls.call(node, "digest", body, deadline))
            except OutcomeUnknown:  # the connection was to an earlier life of the node: it is noticed now
                if last:
                    return None
            except CallerError as error:
                if error.code in (Status.NO_CONNECTION, Status.TIME_OUT):
                    return None
                raise
            else:
                return list(head)
        return None

    async def _digest_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """[applied index, digest] of this node's replica, once it has applied the index that is asked for."""
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        await applied_here(self._driver, group, int(head["index"]), deadline)
        data = self._machines[group.id].data
        try:
            digest, index = data.digester(), data.applied
            return pack([index, await read_pinned(self._world.workers, digest, digest.compute)])
        except CorruptData as error:
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"group {group.id} is damaged here: {error}") from None


def _described(group: Group) -> dict[str, Any]:
    return {
        "group": group.id,
        "role": group.raw.role.name.lower().replace("_", "-"),
        "term": group.raw.term,
        "commit": group.raw.commit,
        "applied": group.applied,
        "first": group.log.first_index(),
    }
