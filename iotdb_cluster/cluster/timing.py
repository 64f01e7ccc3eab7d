"""Time for all groups of a node: a heap of deadlines, and one heartbeat a peer for the groups where nothing happens.

Time is ticks of the driver. A group's core is told of ticks when it is next touched, or when something is due in it
(`RawNode.ticks_left`): the heap holds one deadline a group. A group that is covered (see `beats`) has none, and costs
nothing a tick. A leader's group is covered towards a member that has acknowledged all of its log, of which all is
committed; once all its members are it is left alone. A follower's group is left alone while its leader's node beats:
its election timer runs from the last beat. Where beats or answers fail, the groups concerned have deadlines again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from functools import partial

from iotdb_cluster.cluster.beats import Answer, Beat, BeatReceiver, BeatSender, Covered
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.raft import Message, MessageType, Role

__all__ = ["Timing"]

BEATS_MISSED_MAX = 2  # ticks without a beat, or its answer, after which the groups that it spoke for have deadlines
CALM_TICKS = 1  # nothing happened in a group for so long: it may be covered
HEARD_TICKS = 10  # a node of which nothing came for longer is not well
EXCEPTED_TICKS = 5  # a member that a peer excepted is not covered again before


class _Peer:
    """What is said between this node and another, in both directions."""

    __slots__ = ("answered", "beaten", "beats_alive", "heard", "node", "receiver", "sender")

    def __init__(self, node: int, life: int) -> None:
        self.node = node
        self.sender = BeatSender(life)
        self.receiver = BeatReceiver(life)
        self.heard = -BEATS_MISSED_MAX - 1  # the tick of its last message of any kind
        self.answered = 0  # that of its last answer with an equal hash
        self.beaten = 0  # that of its last beat with an equal hash
        self.beats_alive = False  # whether that was lately


class Timing:
    """`step(group, message)` gives a heartbeat to a replica; `due(group)` is called for one in which something is."""

    def __init__(
        self,
        life: int,
        groups: dict[int, Group],
        step: Callable[[Group, Message], None],
        due: Callable[[Group], None],
    ) -> None:
        """`groups` is the driver's own, which changes; `life` a random number of this start."""
        self.ticks = 0
        self._life = life
        self._groups = groups
        self._step = step
        self._due = due
        self._heap: list[tuple[int, int]] = []
        self._peers: dict[int, _Peer] = {}

    # --- the time of one group ----------------------------------------------------------------------------------------

    def start(self, group: Group) -> None:
        """The group is driven from now on."""
        group.ticked = group.calm_since = self.ticks
        self.schedule(group)

    def remove(self, group: Group) -> None:
        """The group is driven no longer."""
        for node in list(group.covers):
            self._uncover(group, node)
        if group.covered_by:
            self._peers[group.covered_by].receiver.except_(group.id)
            group.covered_by = 0

    def touch(self, group: Group) -> None:
        """Tell the core of the ticks that have passed; before anything else is told to it."""
        now = self.ticks
        if group.ticked == now:
            return
        raw = group.raw
        peer = self._covering(group)
        if peer is not None and peer.beaten > group.ticked:
            raw.leader_is_alive()  # as of then
            group.ticked = peer.beaten
        elif group.covers:
            for node, member in group.covers.items():
                teller = self._peers[node]
                if teller.answered >= group.ticked and teller.sender.settled(group.id):
                    raw.member_is_alive(member)
        count, group.ticked = now - group.ticked, now
        if count:
            raw.tick(count)
            if raw.speaks:
                self._due(group)

    def schedule(self, group: Group) -> None:
        """Put the group's deadline into the heap where it comes earlier than the one that stands there."""
        if self._left_alone(group):
            group.deadline = 0
            return
        deadline = group.ticked + group.raw.ticks_left
        if not group.deadline or deadline < group.deadline:
            group.deadline = deadline
            heapq.heappush(self._heap, (deadline, group.id))

    def changed(self, group: Group) -> None:
        """Look at what the core has become after it was told something; at once where it is covered."""
        raw = group.raw
        state = (raw.term, raw.leader, raw.commit, raw.last_index)
        if state == group.state:
            return
        before, group.state = group.state, state
        group.calm_since = self.ticks
        for node in list(group.covers):
            self._uncover(group, node)
        if before[:2] != state[:2]:
            group.deadline = 0  # that of another role
            if group.covered_by:
                self._peers[group.covered_by].receiver.except_(group.id)
                group.covered_by = 0

    def _covering(self, group: Group) -> _Peer | None:
        """The peer whose beats speak for this follower."""
        return self._peers[group.covered_by] if group.covered_by else None

    def _left_alone(self, group: Group) -> bool:
        peer = self._covering(group)
        if peer is not None:
            return peer.beats_alive
        raw = group.raw
        if not raw.is_leader or raw.transferee or not raw.quiet:
            return False
        settled = sum(self._peers[node].sender.settled(group.id) for node in group.covers)
        return settled == raw.member_count - 1

    # --- ticks --------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick has passed: whatever is due now happens in the cores."""
        self.ticks += 1
        now = self.ticks
        for peer in self._peers.values():
            if peer.beats_alive and now - peer.beaten > BEATS_MISSED_MAX:
                peer.beats_alive = False
                self._released(peer.receiver.held(), for_good=False)
            if peer.sender.pairs and now - peer.answered > BEATS_MISSED_MAX:
                self._lost(peer)
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, number = heapq.heappop(heap)
            group = self._groups.get(number)
            if group is None or group.deadline != deadline:
                continue  # it has another one meanwhile
            group.deadline = 0
            self.touch(group)
            self.changed(group)
            self.schedule(group)
            self._due(group)

    def beats(self) -> list[tuple[int, Beat]]:
        """What to say to whom, once a tick."""
        said = []
        for node, peer in self._peers.items():
            beat = peer.sender.beat()
            if beat is not None:
                said.append((node, beat))
        return said

    # --- as a leader --------------------------------------------------------------------------------------------------

    def takes(self, group: Group, node: int, heartbeat: Message) -> bool:
        """Whether the beat to the node says what a heartbeat would; else it goes out by itself."""
        if heartbeat.context:
            return False  # it confirms reads
        if node in group.covers:
            return True
        match = group.raw.member_match(heartbeat.to)
        if match > group.matched.get(node, 0):
            group.matched[node] = match
            return True  # it took entries a moment ago, and said so: as good as a heartbeat and its answer
        self.changed(group)
        peer = self._peer(node)
        raw = group.raw
        calm = self.ticks - group.calm_since >= CALM_TICKS and self.ticks >= group.excepted_until
        if not calm or self.ticks - peer.heard > BEATS_MISSED_MAX or not raw.member_is_quiet(heartbeat.to):
            return False
        if not peer.sender.pairs:
            peer.answered = self.ticks + BEATS_MISSED_MAX  # its time runs from now
        peer.sender.cover(group.pair(heartbeat))
        group.covers[node] = heartbeat.to
        return True

    def heard(self, node: int) -> None:
        """Something came from the node."""
        self._peer(node).heard = self.ticks

    def heard_lately(self, node: int) -> bool:
        peer = self._peers.get(node)
        return peer is not None and self.ticks - peer.heard <= HEARD_TICKS

    def answered(self, node: int, answer: Answer) -> None:
        peer = self._peer(node)
        peer.heard = self.ticks
        equal, excepted = peer.sender.answered(answer)
        if equal:
            peer.answered = self.ticks
        for number in excepted:
            group = self._groups[number]
            group.excepted_until = self.ticks + EXCEPTED_TICKS
            self._uncover(group, node)

    def _lost(self, peer: _Peer) -> None:
        for number in list(peer.sender.pairs):
            self._uncover(self._groups[number], peer.node)
        peer.sender.lost()
        peer.heard = self.ticks - BEATS_MISSED_MAX - 1  # until something comes from there again

    def _uncover(self, group: Group, node: int) -> None:
        self.touch(group)
        group.covers.pop(node, None)
        self._peers[node].sender.drop(group.id)
        self.schedule(group)
        self._due(group)

    def _peer(self, node: int) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(node, self._life)
        return peer

    # --- as a follower ------------------------------------------------------------------------------------------------

    def beaten(self, node: int, beat: Beat) -> Answer | None:
        """Take a beat; the answer to it."""
        peer = self._peer(node)
        peer.heard = self.ticks
        answer = peer.receiver.take(beat, partial(self._heartbeat, node), self._released)
        if answer is not None and answer.equal:
            peer.beaten = self.ticks
            peer.beats_alive = True
        return answer

    def gone(self, node: int) -> None:
        """The process of a node has ended: who follows it waits for it no longer; who is behind leaves it to others."""
        peer = self._peers.get(node)
        if peer is not None and peer.beats_alive:
            peer.beats_alive = False
            self._released(peer.receiver.held(), for_good=False)  # it may be there still, or again
        for group in list(self._groups.values()):
            raw = group.raw
            if raw.role is Role.FOLLOWER and raw.leader and group.nodes.get(raw.leader) == node:
                self.touch(group)
                raw.leader_is_gone(group.behind)
                self.schedule(group)

    def commit_known(self, group: Group, pair: Covered) -> bool:
        """Take what a leader has committed; False where the replica does not follow it in that term."""
        self.touch(group)
        if (group.raw.term, group.raw.leader) != (pair.term, pair.leader):
            return False
        group.raw.commit_known(pair.commit)
        self._due(group)
        return True

    def follower(self, node: int, pair: Covered) -> Group | None:
        """The replica here that a node speaks of, where there is one and the other is on that node."""
        group = self._groups.get(pair.group)
        if (
            group is None
            or (group.generation, group.replica) != (pair.generation, pair.replica)
            or group.nodes.get(pair.leader) != node
        ):
            return None
        return group

    def _heartbeat(self, node: int, pair: Covered) -> bool:
        group = self.follower(node, pair)
        if group is None:
            return False
        raw = group.raw
        if not self.commit_known(group, pair):  # else the answer to the beat is the answer to this as well
            heartbeat = Message(MessageType.HEARTBEAT, pair.replica, pair.leader, pair.term, commit=pair.commit)
            self._step(group, heartbeat)
        follows = raw.role is Role.FOLLOWER and (raw.term, raw.leader) == (pair.term, pair.leader)
        if follows:
            self.changed(group)  # from here on any other change ends it
            group.covered_by = node
        return follows

    def _released(self, groups: Iterable[int], *, for_good: bool = True) -> None:
        """The groups have deadlines of their own again; their timers run from the last beat."""
        for number in groups:
            group = self._groups.get(number)
            if group is not None:
                self.touch(group)
                if for_good:
                    group.covered_by = 0
                self.schedule(group)
                self._due(group)
