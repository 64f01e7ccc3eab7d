"""What operators and strangers ask of the membership: to be admitted, to remove a member, how far a change is.

Any member answers. The calls come over the ports between nodes, from nodes that have no identifier yet and from the
tools; the commands come over the nodetool port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.conductor import EXILE_CALL, Conductor, described
from iotdb_cluster.cluster.joining import JOIN_CALL, MEMBER_CALL, warn_of_loss
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.meta_forcing import REACH_CALL
from iotdb_cluster.cluster.peers import NodePeers
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.data import runs_of
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta import META_GROUP, UNDER_WAY, Address, Node, cluster_view, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.partition.plan import MoveSlots, rebalance, whole_plan
from iotdb_cluster.partition.view import ClusterView
from iotdb_cluster.world import World

__all__ = ["CHANGE_CALL", "LEAVE_CALL", "MEMBER_CALLS", "Members"]

logger = logging.getLogger(__name__)

LEAVE_CALL, CHANGE_CALL = "leave", "change"
MEMBER_CALLS = (JOIN_CALL, LEAVE_CALL, CHANGE_CALL, MEMBER_CALL, REACH_CALL, EXILE_CALL)
PROPOSE_MS = 10_000
BARRIER_MS = 4_000
PROBE_MS = 1_000
PROBES = 3  # nobody reaches a node in any of them: it is dead
WATCH_MS = 2_000
LONELY_MS = 6_000  # without a leader of the meta group for so long: does the cluster go on without this node?
RATE_MS = 3_000  # points a second are measured for so long
REBALANCED_BY = ("slots", "bytes", "points")


class Members:
    """One node's part in it. `moves()`: how far the moves under way are (`moving.MoveProgress`).

    `fault(error)` ends the node, which learns that it is no member any more.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        meta: MetaAccess,
        calls: Calls,
        peers: NodePeers,
        addresses: dict[int, NodeAddress],
        leaders: Leaders,
        conductor: Conductor,
        moves: Callable[[], Awaitable[list[dict[str, Any]]]],
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        self._settings = settings
        self._meta = meta
        self._calls = calls
        self._peers = peers
        self._addresses = addresses
        self._leaders = leaders
        self._conductor = conductor
        self._moves = moves
        self._fault = fault
        self._told_alone = False  # an operator reads once that nobody is reached
        self.commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "migration": self._migration,
            "remove-node": self._remove_node,
            "rebalance": self._rebalance,
            "set-replication": self._set_replication,
            "pause": self._pause,
            "resume": self._resume,
            "force-group": self._force_group,
        }

    def register(self, calls: Calls) -> None:
        calls.handlers.update(
            {
                JOIN_CALL: self._join_call,
                LEAVE_CALL: self._leave_call,
                CHANGE_CALL: self._change_call,
                MEMBER_CALL: self._member_call,
                REACH_CALL: self._reach_call,
                EXILE_CALL: self._exile_call,
            }
        )

    def _deadline(self, timeout_ms: float = PROPOSE_MS) -> Deadline:
        return Deadline(self._world, timeout_ms)

    def _require_formed(self) -> None:
        if not self._meta.state.bootstrapped:
            raise CallerError(Status.PARTITION_NOT_READY, "the cluster is still being formed: try again")

    # --- joining ------------------------------------------------------------------------------------------------------

    async def _join_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """The value of `join_node`, or {"busy": why not yet}; raises 504 with the reason of a refusal."""
        self._require_formed()
        head, _ = unpack(body)
        await self._meta.barrier(deadline.within(BARRIER_MS))
        if self._meta.begins_anew:  # whoever comes now would be taken for one of those that are left out
            return pack({"busy": "the meta group was forced, and is being told so"})
        address, settings = NodeAddress.load(head["address"]), dict(head["settings"])
        unequal = self._unequal(address, settings)
        if unequal:
            raise CallerError(Status.START_UP_ERROR, f"{'; '.join(unequal)}: make them equal to the cluster's")
        replaces, accept_loss = int(head["replaces"]), bool(head.get("accept_loss"))
        if accept_loss:
            await self._check_dead(replaces)
        try:
            value = await self._meta.propose(
                lambda request: commands.join_node(
                    request,
                    Address(*address.dump()),
                    int(head["incarnation"]),
                    int(head["start"]),
                    int(head["level"]),
                    settings,
                    replaces,
                    accept_loss,
                ),
                deadline,
            )
        except CallerError as error:
            if error.code == Status.START_UP_ERROR and error.message.startswith(UNDER_WAY):
                return pack({"busy": error.message})
            raise
        warn_of_loss(replaces, value)
        return pack(value)

    async def _check_dead(self, replaced: int) -> None:
        """Raise where what only this member has would be given up, and a member reaches it."""
        node = self._meta.state.node(replaced)
        if node is not None and not node.dead and await self._is_reached(replaced):
            raise CallerError(
                Status.START_UP_ERROR,
                f"node {replaced} answers: what it has is not given up; remove it (remove-node.sh), then it hands that "
                "over first, or stop it for good",
            )

    def _unequal(self, address: NodeAddress, theirs: Mapping[str, Any]) -> list[str]:
        """What a node must have as the cluster has it, and has not; each with both values."""
        state = self._meta.state
        ours = {**self._settings.agreement(), "default_replica_num": state.replication}
        members = sorted(NodeAddress(*node.address).name for node in state.nodes)
        strangers = sorted(set(theirs.get("seed_nodes", ())) - {*members, address.name})
        unequal = [
            f"{key} is {theirs.get(key)!r} at {address.name} and {value!r} in the cluster"
            for key, value in sorted(ours.items())
            if key != "seed_nodes" and theirs.get(key) != value
        ]
        if strangers:
            unequal.append(f"seed_nodes has {strangers} at {address.name}, and the cluster's members are {members}")
        return unequal

    # --- leaving ------------------------------------------------------------------------------------------------------

    async def _leave_call(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        return pack(await self._leave(str(head["target"]), bool(head.get("accept_loss")), deadline))

    async def _remove_node(self, request: dict[str, Any]) -> dict[str, Any]:
        target, accept_loss = str(request.get("target", "")), bool(request.get("accept_loss"))
        return await self._leave(target, accept_loss, self._deadline(2 * PROPOSE_MS))

    async def _leave(self, target: str, accept_loss: bool, deadline: Deadline) -> dict[str, Any]:
        """Begin the leave of a member; dead, where no member reaches it."""
        self._require_formed()
        await self._meta.barrier(deadline.within(BARRIER_MS))  # soon enough that the caller hears why not
        node = self._find(target)
        dead = node.dead or not await self._is_reached(node.id)
        value = await self._meta.propose(
            lambda request: commands.leave_node(request, node.id, dead, accept_loss), deadline.within(PROPOSE_MS / 2)
        )
        warn_of_loss(node.id, value)
        lost, dropped = int(value.get("lost", 0)), list(value.get("dropped", ()))
        found = {"node": node.id, "name": NodeAddress(*node.address).text, "dead": dead, "change": value["change"]}
        return {**found, "lost": lost, "dropped": dropped}

    def _find(self, target: str) -> Node:
        """A member by identifier, `host:port` with its meta, data or client port, or its four parts."""
        found = []
        for node in self._meta.state.nodes:
            host, *ports = node.address
            names = {str(node.id), NodeAddress(*node.address).text, *(f"{host}:{port}" for port in ports)}
            if target in names:
                found.append(node)
        if not found:
            raise CallerError(Status.START_UP_ERROR, f"node {target} is not found in the cluster")
        if len(found) > 1:
            texts = ", ".join(f"{node.id} ({NodeAddress(*node.address).text})" for node in found)
            raise CallerError(Status.START_UP_ERROR, f"{target} names several members: {texts}; give the identifier")
        return found[0]

    async def _is_reached(self, node: int) -> bool:
        """Whether any member has an answer of the node: one alone may be cut off from it."""
        others = [one.id for one in self._meta.state.nodes if one.id != node]
        for _ in range(PROBES):
            if any(await asyncio.gather(*(self._ask_reach(other, node) for other in others))):
                return True
            await asyncio.sleep(0.2)
        return False

    async def _ask_reach(self, member: int, node: int) -> bool:
        try:
            answer = await self._calls.call(member, REACH_CALL, pack({"node": node}), self._deadline(2 * PROBE_MS))
        except CallerError:
            return False
        head, _ = unpack(answer)
        return bool(head)

    async def _reach_call(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        try:
            await self._calls.call(int(head["node"]), MEMBER_CALL, pack({"node": 0}), deadline.within(PROBE_MS))
        except CallerError:
            return pack(False)
        return pack(True)

    # --- who is none any more -----------------------------------------------------------------------------------------

    async def _exile_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        node = self._calls.node
        if int(head["node"]) == node:
            reason = f"node {node} is removed: it is no member of the cluster any more"
            asyncio.get_running_loop().call_later(0.1, self._fault, Removed(reason))  # the answer goes first
        return pack(None)

    async def _member_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Whether a node was removed, as far as is known here; asked for what is `current`, by all that is decided."""
        head, _ = unpack(body)
        current = bool(head.get("current"))
        if current:
            self._require_formed()
            await self._meta.barrier(deadline.within(PROBE_MS))  # who asks goes on without an answer
        state, node = self._meta.state, int(head["node"])
        removed = state.bootstrapped and (state.removed_node(node) or state.left_out(node))
        nodes = [[one.id, one.incarnation, one.start, *one.address] for one in state.nodes if one.registered]
        return pack({"removed": removed, "nodes": nodes, "current": current})

    async def run(self) -> None:
        """Until cancelled: a node that hears nothing of the meta group asks whether it was removed."""
        lonely_ms = 0.0
        while True:
            await asyncio.sleep(WATCH_MS / 1000)
            if self._meta.leads:
                await self._tell_left_out()
            lonely_ms = 0.0 if self._meta.hears_leader else lonely_ms + WATCH_MS
            if lonely_ms >= LONELY_MS and await self._was_removed():
                self._fault(Removed(f"node {self._calls.node} was removed: it is no member of the cluster any more"))
                return

    async def _tell_left_out(self) -> None:
        """Who comes back after the meta group was forced without him may have found others to go on with."""
        for node in [node.id for node in self._meta.state.nodes if self._meta.state.left_out(node.id)]:
            try:
                await self._calls.call(node, EXILE_CALL, pack({"node": node}), self._deadline(PROBE_MS))
            except CallerError as error:
                logger.debug("node %d, which is out of the meta group, is not there: %s", node, error)

    async def _was_removed(self) -> bool:
        """Members are asked where they were; where none is there any more, the seeds of the configuration."""
        body, me = pack({"node": self._calls.node}), self._calls.node
        known = self._meta.state.bootstrapped  # after a restart perhaps not: what is committed is not known then
        nodes = [node.id for node in self._meta.state.nodes] if known else list(self._addresses)
        answered = False
        for node in [node for node in nodes if node != me]:
            try:
                head, _ = unpack(await self._calls.call(node, MEMBER_CALL, body, self._deadline(PROBE_MS)))
            except CallerError:
                continue
            answered = True
            if head["removed"]:
                return True
            self._learn(head)
        return known and not answered and await self._seeds_say_removed(body)

    def _learn(self, head: Mapping[str, Any]) -> bool:
        """Where members are by now; False where whoever tells knows none of ours: it is another cluster's."""
        ours = False
        for number, incarnation, start, *address in head.get("nodes", ()):
            known = self._meta.state.node(number)
            if known is None or known.incarnation != incarnation or number == self._calls.node:
                continue
            ours = True
            if start > known.start and self._addresses.get(number) != NodeAddress(*address):
                logger.info("node %d is at %s by now", number, NodeAddress(*address).name)
                self._addresses[number] = NodeAddress(*address)
        return ours

    async def _seeds_say_removed(self, body: bytes) -> bool:
        me = self._settings.address
        answered = False
        for seed in [seed for seed in self._settings.seeds if seed.name != me.name]:
            try:
                head, _ = unpack(await self._peers.call_stranger(seed, MEMBER_CALL, body, PROBE_MS))
            except CallerError:
                continue
            if self._learn(head):
                answered = True
                if head["removed"]:
                    return True
        if not answered and not self._told_alone:
            self._told_alone = True
            logger.warning(
                "no member of the cluster is reached, neither where this node knows them nor at the seeds of its "
                "configuration: where they have other addresses by now, name one of them in seed_nodes"
            )
        return False

    # --- how far it is ------------------------------------------------------------------------------------------------

    async def _change_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del body
        return pack(await self._progress(deadline))

    async def _migration(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return await self._progress(self._deadline())

    async def _progress(self, deadline: Deadline) -> dict[str, Any]:
        """As the meta group's leader sees it; where there is none, as this node does."""
        self._require_formed()
        leader = self._leaders.leader(META_GROUP)
        if leader and leader != self._calls.node:
            try:
                head, _ = unpack(await self._calls.call(leader, CHANGE_CALL, pack(None), deadline))
                return dict(head)
            except CallerError as error:
                logger.info("node %d does not say how far the change is: %s", leader, error.message)
        return await self._told(leader)

    async def _told(self, leader: int) -> dict[str, Any]:
        state = self._meta.state
        change, view = state.change, cluster_view(state)
        plan = await self._world.workers.run(whole_plan, view) if change is not None else []
        to_go = sum(len(step.slots) for step in plan if isinstance(step, MoveSlots))
        counts = state.table.counts()
        return {
            "leader": leader,
            "nodes": [[node.id, NodeAddress(*node.address).text, str(node.state), node.dead] for node in state.nodes],
            "replication": state.replication,
            "change": None
            if change is None
            else {"id": change.id, "kind": str(change.kind), "node": change.node, "paused": change.paused},
            "slots_left": to_go + sum(len(move.slots) for move in state.moves),
            "slots": {str(group.id): counts.get(group.id, 0) for group in state.groups},
            "steps": [described(step) for step in plan],
            "waiting": [*self._conductor.waiting(), *await self._groups_wait()] if leader == self._calls.node else [],
            "moves": await self._moves_shown(),
            "losses": [[loss.at, loss.node, list(loss.groups), loss.slots] for loss in state.losses],
        }

    async def _groups_wait(self) -> list[str]:
        """What changes of groups' members wait for, as the groups' leaders say."""
        if self._meta.state.change is None:
            return []

        async def ask(node: int) -> list[dict[str, Any]]:
            try:
                head, _ = unpack(await self._calls.call(node, "state", pack(None), self._deadline(PROBE_MS)))
            except CallerError:
                return []
            return list(head)

        answers = await asyncio.gather(*(ask(node.id) for node in self._meta.state.nodes))
        rows = sorted((row["group"], row["waits"]) for rows in answers for row in rows if row.get("waits"))
        return [f"group {number}: {text}" for number, text in rows]

    async def _moves_shown(self) -> list[dict[str, Any]]:
        """Each move under way, with the progress that its driver tells."""
        rows = {int(row["move"]): row for row in await self._moves()}
        return [
            {
                **rows.get(move.id, {}),
                "move": move.id,
                "giver": move.giver,
                "receiver": move.receiver,
                "slots": [[first, last] for first, last, _ in runs_of(move.slots)],
                "count": len(move.slots),
            }
            for move in self._meta.state.moves
        ]

    # --- changes without a newcomer -----------------------------------------------------------------------------------

    async def _set_replication(self, request: dict[str, Any]) -> dict[str, Any]:
        number = int(request.get("replication", 0))
        return await self._propose(lambda request: commands.set_replication(request, number))

    async def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return await self._propose(commands.pause_change)

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return await self._propose(commands.resume_change)

    async def _force_group(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let a data group go on without its replicas on nodes that nobody reaches, also where that may lose points."""
        self._require_formed()
        try:
            await self._meta.barrier(self._deadline(BARRIER_MS))
        except CallerError as error:
            text = (
                f"the meta group decides nothing ({error.message}): where its majority is dead, force-meta comes first"
            )
            raise CallerError(Status.START_UP_ERROR, text) from None
        number, state = int(request.get("group", 0)), self._meta.state
        record = state.group(number)
        if record is None or number == META_GROUP:
            raise CallerError(Status.START_UP_ERROR, f"there is no data group {number}: nodetool groups shows them")
        known = {node.id: node for node in state.nodes}
        asked = [node for node in record.nodes if not known[node].dead]
        reached = dict(zip(asked, await asyncio.gather(*map(self._is_there, asked)), strict=True))
        dead = [replica for replica in record.replicas if not reached.get(replica.node, False)]
        if not dead:
            raise CallerError(Status.START_UP_ERROR, f"every member of group {number} answers: it needs no force")
        generation, accept = record.generation + 1, bool(request.get("accept_loss"))
        value = await self._propose(
            lambda request: commands.force_group(request, number, generation, [one.id for one in dead], accept)
        )
        logger.warning(
            "group %d is forced into generation %d without its replicas on the nodes %s%s",
            number, generation, [one.node for one in dead], ", a loss is accepted" if accept else "",
        )  # fmt: skip
        return {"group": number, "generation": generation, "left_out": [one.node for one in dead], **value}

    async def _is_there(self, node: int) -> bool:
        return node == self._calls.node or await self._is_reached(node)

    async def _rebalance(self, request: dict[str, Any]) -> dict[str, Any]:
        by = str(request.get("by", "slots"))
        if by not in REBALANCED_BY:
            raise CallerError(Status.ILLEGAL_PARAMETER, f"slots are rebalanced by {', '.join(REBALANCED_BY)}, not {by}")
        view = cluster_view(self._meta.state)
        wanted = await self._wanted(view, by)
        moves = [(step.giver, step.receiver, step.slots) for step in wanted]
        shown = [{"giver": giver, "receiver": receiver, "slots": len(slots)} for giver, receiver, slots in moves]
        if request.get("dry_run"):
            going = await self._world.workers.run(whole_plan, view)  # of the change under way, first
            return {"moves": shown, "steps": [described(step) for step in [*going, *wanted]], "change": 0}
        value = await self._propose(lambda request: commands.rebalance(request, moves))
        return {"moves": shown, **value}

    async def _wanted(self, view: ClusterView, by: str) -> list[MoveSlots]:
        if by == "slots":
            return await self._world.workers.run(rebalance, view)
        held = await self._held(view)
        weights = [0] * SLOTS
        if by == "bytes":
            for slot, _, size, *_ in held:
                weights[slot] = size
        else:
            before = {slot: points for slot, *_, points in held}
            await asyncio.sleep(RATE_MS / 1000)
            for slot, *_, points in await self._held(view):  # where another leads by now it is no rate
                weights[slot] = max(0, points - before.get(slot, points))
        return await self._world.workers.run(rebalance, view, weights)

    async def _held(self, view: ClusterView) -> list[list[int]]:
        """What the leaders of all groups tell of the slots that hold anything."""
        answers = await asyncio.gather(*(self._conductor.held(group.id) for group in view.groups))
        return [row for rows in answers for row in rows]

    async def _propose(self, command: Callable[[Any], bytes]) -> dict[str, Any]:
        self._require_formed()
        return dict(await self._meta.propose(command, self._deadline()))
