"""Forced reconfiguration of the meta group: half of it, or more, is dead, and the operator says so on a survivor.

Nobody can decide it for the meta group, so the node that is asked looks itself: it asks every member that it can reach
where its log ends, and goes on only where no other survivor has a longer one, by (last term, last index), and the
survivors meet every majority of each configuration that stands in its log. The survivors then leave the old generation
for ever, the others first: each keeps what it knows to be committed and forgets the rest of its log. Last the asked
node becomes the only voter of the next generation: all its log is committed. It fills the others, which are promoted
like newcomers, and then meta is told (`force_group`), which marks those that are left out as dead.

What has been written down at any moment of this is harmless: a survivor in the new generation waits for the one whose
log has won, and where that has not followed, the command is run there again. Where it is lost before anybody else was a
voter of the new generation, whoever followed it says so, and begins a further one when the operator accepts the loss;
not while members answer that were to be left out: they may have found together, and go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.forcing import LogEnd
from iotdb_cluster.cluster.log import Configuration, DurableLog, Install, ReplicaLog, State, submitted
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.replicas import Replicas
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.limits import APPLY_BYTES_MAX
from iotdb_cluster.meta import MetaState, Role
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfChangeType, ConfState, EntryKind, HardState, decode_conf_change
from iotdb_cluster.world import World

__all__ = ["FORCE_META", "META_FORCE_CALLS", "REACH_CALL", "MetaForcing"]

logger = logging.getLogger(__name__)

FORCE_META = "force-meta"  # the command, by its name on the nodetool port
META_END_CALL, META_FORCE_CALL, REACH_CALL = "meta log end", "force meta", "reach"
META_FORCE_CALLS = (META_END_CALL, META_FORCE_CALL)
ASK_MS = 2_000
PROBES, PROBE_AGAIN_MS = 4, 500  # who answers none of them is dead
FOLLOW_MS = 20_000
LOOK_MS = 30_000  # between two looks whether this node has followed somebody who is gone
_UNREACHED = (Status.NO_CONNECTION, Status.TIME_OUT)


class _Survey(NamedTuple):
    """What is to be done: who goes on, who is left out, and the generation that begins."""

    generation: int
    survivors: tuple[int, ...]
    left_out: tuple[int, ...]


def _refused(message: str) -> CallerError:
    return CallerError(Status.START_UP_ERROR, message)


def configurations(view: ReplicaLog, joining: set[int]) -> tuple[list[tuple[int, ...]], set[int]]:
    """(the voters in each configuration that a log tells of, the members of the last one).

    The stored one, then what each later entry makes of it, committed or not. `joining` are members too: meta has
    admitted them, and no entry may have yet.
    """
    conf = view.conf_state
    voters, members = set(conf.voters), {*conf.voters, *conf.learners, *joining}
    found = [tuple(sorted(voters))]
    at = max(view.configured + 1, view.first_index())
    while at <= view.last_index():
        entries = view.read(at, view.last_index() + 1, APPLY_BYTES_MAX)
        for kind, data in zip(entries.kinds, entries.data, strict=True):
            if kind == EntryKind.NORMAL:
                continue
            for one in decode_conf_change(data).changes:
                (voters.add if one.type is ConfChangeType.ADD_NODE else voters.discard)(one.node)
                (members.discard if one.type is ConfChangeType.REMOVE_NODE else members.add)(one.node)
            found.append(tuple(sorted(voters)))
        at = entries.last + 1
    return list(dict.fromkeys(found)), members


class MetaForcing:
    """One node's part in it."""

    def __init__(
        self,
        world: World,
        log: DurableLog,
        replicas: Replicas,
        machine: MetaMachine,
        calls: Calls,
        addresses: dict[int, NodeAddress],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`spawn` makes a task of the node's own."""
        self._world = world
        self._addresses = addresses
        self._log = log
        self._replicas = replicas
        self._machine = machine
        self._calls = calls
        self._spawn = spawn
        self._forcing = asyncio.Lock()
        self.commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            FORCE_META: self._force_meta
        }

    def register(self, calls: Calls) -> None:
        calls.handlers.update({META_END_CALL: self._end_call, META_FORCE_CALL: self._force_call})

    @property
    def _view(self) -> ReplicaLog:
        return self._log.view(self._calls.node)

    @property
    def _followed(self) -> int:
        """Whose log began the generation in which this node is no voter yet; 0 where it is one, or began it itself."""
        view, me = self._view, self._calls.node
        waits = view.chosen not in (0, me) and view.conf_state.voters == (view.chosen,)
        return view.chosen if waits else 0

    def _way_out(self, winner: int) -> str:
        return (
            f"this node has followed node {winner} into generation {self._view.generation} of the meta group, and node "
            f"{winner} does not lead it: start that again, and run force-meta there if it did not begin; if it is lost "
            "for good, force-meta --accept-loss on this node begins anew, without what it alone has decided; if the "
            "other members go on without this node, remove it there and let it join anew with empty directories"
        )

    async def run(self) -> None:
        """Say, until cancelled, what has to be done where this node waits for somebody who may be lost."""
        waited = False
        while True:
            await asyncio.sleep(LOOK_MS / 1000)
            winner = 0 if self._replicas.meta_leader or self._forcing.locked() else self._followed
            if winner and waited:
                logger.warning("%s", self._way_out(winner))
            waited = bool(winner)

    # --- the operator's command ---------------------------------------------------------------------------------------

    async def _force_meta(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._forcing.locked():
            raise _refused("the meta group is being forced: wait for that")
        await self._forcing.acquire()
        try:
            survey = await self._survey(accept_loss=bool(request.get("accept_loss")))
        except BaseException:
            self._forcing.release()
            raise
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._spawn(self._carry_out(survey, answer))
        return await answer

    async def _carry_out(self, survey: _Survey, answer: asyncio.Future[dict[str, Any]]) -> None:
        """Whoever asked may have gone: what has begun must not stay half done."""
        try:
            begun = await self._begin(survey)
            if not answer.done():
                answer.set_result(begun)
        except CallerError as error:
            logger.warning("the meta group is not forced: %s", error.message)
            if not answer.done():
                answer.set_exception(error)
        finally:
            self._forcing.release()

    async def _as_of_the_end(self) -> MetaState:
        """What meta has decided if all of this node's log counts: after a restart it is not known what is committed."""
        view, machine = self._view, self._machine.apart()
        machine.recover(view)
        while machine.index < view.last_index():
            machine.apply(view.read(machine.index + 1, view.last_index() + 1, APPLY_BYTES_MAX))
            await asyncio.sleep(0)
            if machine.index < view.first_index() - 1:  # the log was compacted meanwhile
                machine.recover(view)
        return machine.state

    async def _survey(self, *, accept_loss: bool) -> _Survey:
        """Raises CallerError with the reason for a refusal."""
        state = await self._as_of_the_end()
        if not state.bootstrapped:
            raise _refused("the cluster is not founded yet, as far as this node knows: there is nothing to force")
        for node in state.nodes:
            self._addresses.setdefault(node.id, NodeAddress(*node.address))
        me, view, record = self._calls.node, self._view, state.meta_group
        joining = {one.node for one in record.replicas if one.role is Role.JOINING} if record is not None else set()
        known, members = configurations(view, joining)
        winner = self._followed
        others = {node.id for node in state.nodes if winner and not state.left_out(node.id)}
        asked = sorted({*members, *others, *(one for voters in known for one in voters)} - {me})
        ends = await self._ends(asked)
        outside = sorted(set(ends) - members) if winner else []
        if outside:
            raise _refused(
                f"the nodes {outside} answer, and generation {view.generation} of the meta group was to begin without "
                f"them: they may go on together; stop them, or leave it to them; {self._way_out(winner)}"
            )
        dead = set(asked) - set(ends)
        left_out = tuple(sorted(members & dead))
        waits = view.chosen == me and view.conf_state.voters == (me,) and bool(view.conf_state.learners)
        if not left_out:
            raise _refused("every member of the meta group answers: it needs no force")
        if not waits and all(2 * len(dead & set(voters)) < len(voters) for voters in known):
            raise _refused("a majority of the meta group is alive: it needs no force")
        unmet = [voters for voters in known if len(dead & set(voters)) >= len(voters) // 2 + 1]
        if unmet and not accept_loss and winner in dead:
            raise _refused(self._way_out(winner))
        if unmet and not accept_loss:
            raise _refused(
                f"the nodes {list(left_out)}, which do not answer, were a majority of the members {list(unmet[0])} of "
                f"the meta group: what they alone have decided after entry {view.last_index()} would be lost (members, "
                "owners of slots, storage groups, TTLs, users); bring one back, or say --accept-loss"
            )
        return _Survey(
            1 + max([view.generation, *(end.generation for end in ends.values())]),
            tuple(sorted(members & set(ends))),
            left_out,
        )

    async def _ends(self, nodes: list[int]) -> dict[int, LogEnd]:
        """Where the logs of those end that answer; raises CallerError where this node's must not win."""
        view, me = self._view, self._calls.node
        ends: dict[int, Any] = {}
        silent = nodes
        for probe in range(PROBES):  # one that has just come back is not dead
            await asyncio.sleep(PROBE_AGAIN_MS / 1000 if probe and silent else 0)
            answers = await asyncio.gather(*(self._ask(node, META_END_CALL, {"node": me}) for node in silent))
            ends |= {node: answer for node, answer in zip(silent, answers, strict=True) if answer is not None}
            silent = [node for node in nodes if node not in ends]
        for node in silent:
            for other in ends:
                if await self._ask(other, REACH_CALL, {"node": node}):
                    raise _refused(
                        f"node {node} would be left out, and node {other} reaches it: mend the network, or stop it"
                    )
        mine = view.term(view.last_index()), view.last_index()
        for node, answer in ends.items():
            if answer["left_out"]:
                raise _refused(f"node {node} says that node {me} is no member of the cluster any more: run it there")
            end = ends[node] = LogEnd(*answer["end"])
            if end.generation > view.generation and end.chosen != me:
                raise _refused(
                    f"node {node} is in generation {end.generation} of the meta group, which began with the log of "
                    f"node {end.chosen}; this one is in {view.generation}: run it on node {end.chosen}"
                )
            if end.generation == view.generation and (end.term, end.last) > mine:
                raise _refused(
                    f"the meta log of node {node} ends with entry {end.last} of term {end.term}, that of this node "
                    f"({me}) with entry {mine[1]} of term {mine[0]}: run it on node {node}"
                )
        return ends

    async def _ask(self, node: int, method: str, head: Any) -> Any:
        """The answer; None where nobody answers. Raises CallerError where the node says no."""
        try:
            answer, _ = unpack(await self._calls.call(node, method, pack(head), Deadline(self._world, ASK_MS)))
        except CallerError as error:
            if isinstance(error, OutcomeUnknown) or error.code in _UNREACHED:
                return None
            raise _refused(f"node {node} answers, and says no: {error.message}; try again") from None
        return answer

    async def _begin(self, survey: _Survey) -> dict[str, Any]:
        """The others leave the old generation first, then this node: only then can anything be decided in the new."""
        me = self._calls.node
        view = await self._replicas.stop_meta()
        last = view.last_index()
        term = view.term(last)
        try:
            body = {**survey._asdict(), "winner": me, "term": term, "last": last}
            failures = await self._calls.call_each(
                survey.survivors, META_FORCE_CALL, pack(body), Deadline(self._world, FOLLOW_MS)
            )
            for node, failure in zip(survey.survivors, failures, strict=True):
                if failure is not None:
                    raise _refused(
                        f"node {node} does not follow into generation {survey.generation} of the meta group: "
                        f"{failure.message}; nothing is lost: run the command again"
                    )
            members = ConfState((me,), survey.survivors)
            logger.warning(
                "the meta group begins generation %d with the log of this node, entry %d of term %d; without the nodes "
                "%s", survey.generation, last, term, list(survey.left_out),
            )  # fmt: skip
            hard = view.hard_state
            await submitted(
                self._log,
                Configuration(me, members, last, survey.generation, me),
                State(me, HardState(hard.term, hard.vote, last)),
            )
        finally:
            await self._replicas.start_meta()
        return {**survey._asdict(), "node": me, "term": term, "last": last}

    # --- asked by the survivor whose log wins -------------------------------------------------------------------------

    async def _end_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        state, view = self._machine.state, self._view
        asking = int(head["node"])
        left_out = state.bootstrapped and (state.removed_node(asking) or state.left_out(asking))
        end = LogEnd(view.generation, view.term(view.last_index()), view.last_index(), view.chosen)
        return pack({"end": list(end), "left_out": left_out})

    async def _force_call(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        if self._forcing.locked():
            raise CallerError(Status.PARTITION_NOT_READY, f"node {self._calls.node} forces the meta group itself")
        async with self._forcing:
            await self._follow(head, deadline)
        return pack(None)

    async def _follow(self, head: Mapping[str, Any], deadline: Deadline) -> None:
        """Leave the old generation for ever, with what is known to be committed; the winner has the rest."""
        me, generation, winner = self._calls.node, int(head["generation"]), int(head["winner"])
        theirs = int(head["term"]), int(head["last"])
        view = await self._replicas.stop_meta()
        try:
            mine = view.term(view.last_index()), view.last_index()
            if generation <= view.generation or mine > theirs:
                raise _refused(
                    f"node {me} is in generation {view.generation}, and its meta log ends with entry {mine[1]} of "
                    f"term {mine[0]}: generation {generation} cannot begin with a log that ends at {theirs[1]}"
                )
            index, term = max(1, self._machine.index), max(1, self._machine.term)
            try:
                async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                    await self._replicas.meta_checkpointed(index)
            except TimeoutError:
                raise CallerError(Status.TIME_OUT, f"node {me} has no checkpoint of meta yet: try again") from None
            members = ConfState((winner,), tuple(int(one) for one in head["survivors"]))
            hard = view.hard_state
            logger.warning("the meta group begins generation %d with the log of node %d", generation, winner)
            await submitted(
                self._log,
                Install(me, index, term, members),
                Configuration(me, members, index, generation, winner),
                State(me, HardState(max(hard.term, term), hard.vote if hard.term >= term else 0, index)),
            )
        finally:
            await self._replicas.start_meta()
