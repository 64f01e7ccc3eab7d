"""Random histories of membership: real commands on a real meta state, against a model of who is up and who has what.

Nodes die and come back, operators change their minds, the conductor does the steps in any order, some of them in part,
some twice. After each command the invariants are looked at with plain computations of their own.
"""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Any

from iotdb_cluster.errors import CallerError
from iotdb_cluster.meta import META_GROUP, Group, MetaState, Role, cluster_view, commands
from iotdb_cluster.partition import plan
from iotdb_cluster.partition.view import ClusterView
from tests.meta.model import AGREED, Meta, address

STEPS_MAX = 6_000  # of one change
PATIENCE = 150  # turns after which the operator helps
JSON_EVERY = 10  # commands between two comparisons with a state that was loaded from a snapshot


def fewest_moves(counts: dict[int, int], groups: list[int]) -> int:
    """How many slots must move until `groups` have all of them, even within 1: every choice is tried."""
    low, rest = divmod(sum(counts.values()), len(groups))
    return min(
        sum(max(0, count - (low + (group in above) if group in groups else 0)) for group, count in counts.items())
        for above in combinations(groups, rest)
    )


class History:
    """One history; `run` plays it and raises AssertionError where an invariant breaks."""

    def __init__(self, seed: int, slots: int) -> None:
        self.random = random = Random(seed)
        self.nodes = random.randint(1, 6)
        self.slots = slots
        self.meta = Meta.founded(self.nodes, replication=random.randint(1, 4))
        self.down: set[int] = set()
        self.holders = {group.id: {replica.id for replica in group.replicas} for group in self.state.groups}
        self.owners = list(self.state.table.owners)
        self.epochs = [1] * slots
        self.places = self.nodes  # addresses in use so far
        self.old: list[tuple[Any, ...]] = []  # commands that a conductor of an earlier view may still propose
        self.bound: int | None = None  # moves that are needed since the last decision about members
        self.moved = 0
        self.before: set[int] = set()  # moves that had begun then
        self.changes = 0

    @property
    def state(self) -> MetaState:
        return self.meta.state

    def view(self) -> ClusterView:
        return cluster_view(self.state)

    # --- commands and invariants --------------------------------------------------------------------------------------

    def do(self, command: Any, *fields: Any) -> Any:
        try:
            return self.meta.do(command, *fields)
        finally:
            self.follow()
            self.look()

    def tried(self, command: Any, *fields: Any) -> bool:
        try:
            self.do(command, *fields)
        except CallerError:
            return False
        return True

    def follow(self) -> None:
        """Who has the data of each group: replicas that a settled group has, and that could follow."""
        for group in self.state.groups:
            ids = {replica.id for replica in group.replicas}
            holders = self.holders.setdefault(group.id, set(ids))
            holders &= ids
            if group.settled and self.majority_up(group) and self.up_holders(group):
                holders |= {replica.id for replica in group.replicas if replica.node not in self.down}
        for group_id in set(self.holders) - {group.id for group in self.state.groups}:
            del self.holders[group_id]

    def up_holders(self, group: Group) -> set[int]:
        return {r.id for r in group.replicas if r.id in self.holders[group.id] and r.node not in self.down}

    @staticmethod
    def present(group: Group) -> list[set[int]]:
        """The configurations of this generation: after a force meta remembers those of the one before for a while."""
        known = {replica.id for replica in group.replicas}
        return [set(members) for members in group.configurations if set(members) <= known]

    def majority_up(self, group: Group) -> bool:
        up = {replica.id for replica in group.replicas if replica.node not in self.down}
        return all(2 * len(up & members) > len(members) for members in self.present(group))

    def look(self) -> None:
        state = self.state
        groups = {group.id: group for group in state.groups}
        on_the_way = [slot for move in state.moves for slot, _ in move.slots]
        assert len(on_the_way) == len(set(on_the_way))
        for move in state.moves:
            assert groups[move.giver].settled
            assert groups[move.receiver].settled
            for slot, epoch in move.slots:
                assert state.table.owner(slot) == (move.giver, epoch - 1)
        for slot, owner in enumerate(state.table.owners):
            assert owner in groups
            epoch = state.table.owner(slot)[1]
            assert epoch >= self.epochs[slot]
            assert epoch > self.epochs[slot] or owner == self.owners[slot]
            self.owners[slot], self.epochs[slot] = owner, epoch
        used = set(self.owners)
        for group in groups.values():
            nodes = [replica.node for replica in group.replicas]
            assert len(nodes) == len(set(nodes))
            assert all(state.node(node) is not None for node in nodes)
            assert group.target
            kept = set.intersection(*self.present(group))
            assert kept, f"group {group.id} keeps nobody from {group.configurations}"
            if group.id in used:
                assert self.up_holders(group), f"nobody who is up has group {group.id}"
        if state.applied % JSON_EVERY == 0:
            self.same_everywhere()

    def same_everywhere(self) -> None:
        """Another node, which has a snapshot, or heard of things in another order, has the same plan."""
        mine = plan.next_steps(self.view())
        assert plan.next_steps(self.view()) == mine
        other = MetaState.load(self.state.dump())
        assert other.dump() == self.state.dump()
        for table in (other._cluster.nodes, other._cluster.groups, other._cluster.moves):
            items: list[Any] = list(table.items())
            self.random.shuffle(items)
            table.clear()
            table.update(items)  # type: ignore[arg-type]
        assert cluster_view(other) == self.view()
        assert plan.next_steps(cluster_view(other)) == mine

    # --- the operator -------------------------------------------------------------------------------------------------

    def decided(self) -> None:
        """Members were decided about: from now on so many moves are needed."""
        owners = list(self.owners)
        staying = [node.id for node in self.state.nodes if node.stays]
        for move in self.state.moves:
            for slot, _ in move.slots if move.receiver in staying else ():
                owners[slot] = move.receiver
        counts = {group: owners.count(group) for group in {*owners, *staying}}
        self.bound, self.moved, self.before = fewest_moves(counts, staying), 0, {move.id for move in self.state.moves}

    def join(self, replaces: int = 0) -> None:
        at = self.places + 1
        if replaces:
            node = self.state.node(replaces)
            assert node is not None
            at = next(place for place in range(1, self.places + 1) if address(place) == node.address)
        settings = {**AGREED, "default_replica_num": self.state.replication}
        incarnation = 1_000 + self.state.applied
        fields = (address(at), incarnation, 1, 1, settings, replaces)
        if self.tried(commands.join_node, *fields):
            self.places = max(self.places, at)
            self.decided()
            if self.random.random() < 0.3:
                assert self.do(commands.join_node, *fields)["node"] == self.state.nodes[-1].id

    def may_lose(self, node: int) -> bool:
        """Without this node's copies nothing is lost, and every group can go on: it may be given up as dead."""
        dead = {one.id for one in self.state.nodes if one.dead} | {node}
        for group in (*self.state.groups, self.state.meta_group):
            assert group is not None
            alive = {replica.id for replica in group.replicas if replica.node not in dead}
            for members in group.configurations:
                if len(set(members) - alive) > len(members) // 2:
                    return False
        return self.may_fall(node)

    def may_fall(self, node: int) -> bool:
        """With this node down too, the meta group has a majority, and somebody who is up has each group's data."""
        meta = self.state.meta_group
        assert meta is not None
        down = self.down | {node}
        voters = [replica.node for replica in meta.replicas if replica.role is Role.VOTER]
        used = set(self.owners)
        kept = [
            {r.id for r in group.replicas if r.node not in down} & self.holders[group.id]
            for group in self.state.groups
            if group.id in used
        ]
        return 2 * sum(one not in down for one in voters) > len(voters) and all(kept)

    def leave(self, node: int, dead: bool) -> None:
        if dead:
            self.down.add(node)
        if self.tried(commands.leave_node, node, dead):
            self.decided()
        elif dead:
            self.down.discard(node)
            self.follow()

    def kill(self) -> None:
        """One more node goes down, unless the data of a group, or the meta group, went down with it."""
        node = self.random.choice(self.state.nodes).id
        if self.may_fall(node):
            self.down.add(node)

    def operator(self) -> None:
        random, state = self.random, self.state
        node = random.choice(state.nodes)
        match random.choices(range(8), (4, 4, 2, 2, 1, 1, 1, 1))[0]:
            case 0:
                self.join()
            case 1:
                self.leave(node.id, dead=False)
            case 2 if node.stays and self.may_lose(node.id):
                self.leave(node.id, dead=True)
            case 3 if node.stays and self.may_lose(node.id):
                self.down.add(node.id)
                self.join(node.id)
                if state.node(node.id) in state.nodes and not state.node(node.id).dead:  # type: ignore[union-attr]
                    self.down.discard(node.id)
            case 4:
                self.tried(commands.set_replication, random.randint(1, 4))
            case 5:
                weights = [random.choice((0, 0, 1, 10, 1_000)) for _ in range(self.slots)]
                wanted = plan.rebalance(self.view(), weights if random.random() < 0.7 else None)
                if state.change is None:
                    self.tried(commands.rebalance, [(step.giver, step.receiver, step.slots) for step in wanted])
            case 6:
                self.tried(random.choice((commands.pause_change, commands.resume_change)))
            case 7:
                self.kill()
            case _:
                pass
        if state.change is not None:
            self.refuses_another()

    def refuses_another(self) -> None:
        before = self.state._cluster.dump()
        settings = {**AGREED, "default_replica_num": self.state.replication}
        self.meta.refuses("has not finished", commands.join_node, address(99), 99, 1, 1, settings, 0)
        self.meta.refuses("has not finished", commands.set_replication, 5)
        self.meta.refuses("has not finished", commands.rebalance, [])
        assert self.state._cluster.dump() == before

    # --- the conductor ------------------------------------------------------------------------------------------------

    def begin(self, step: plan.Step) -> bool:
        """Propose the step, perhaps a part of it, perhaps twice; False where it waits for somebody."""
        command = self.command(step)
        if command is None:
            return False
        if self.random.random() < 0.2:
            self.old.append(command)
        assert self.tried(*command), step
        if isinstance(step, plan.ForceGroup):  # moves of the group have ended where they began
            self.decided()
        if self.random.random() < 0.1:
            self.tried(*command)
        return True

    def command(self, step: plan.Step) -> tuple[Any, ...] | None:
        view = self.view()
        match step:
            case plan.AddMetaMember(node, voter):
                voters, learners = set(view.meta_voters) - {node}, set(view.meta_learners) - {node}
                (voters if voter else learners).add(node)
                return (commands.group_shaped, META_GROUP, 1, sorted(voters), sorted(learners))
            case plan.RemoveMetaMember(node):
                voters, learners = set(view.meta_voters) - {node}, set(view.meta_learners) - {node}
                return (commands.group_shaped, META_GROUP, 1, sorted(voters), sorted(learners))
            case plan.CreateGroup(header):
                return (commands.create_group, header)
            case plan.ForceGroup(group, generation, dead):
                return (commands.force_group, group, generation, dead)
            case plan.ShiftGroup(group, add, remove):
                return (commands.shift_group, group, add, remove)
            case plan.MoveSlots(giver, receiver, slots):
                some = self.random.sample(slots, self.random.randint(1, len(slots)))
                return (commands.begin_move, giver, receiver, some if self.random.random() < 0.5 else slots)
            case plan.EndMove(move):
                return (commands.end_move, move, "giver")
            case plan.DissolveGroup(group, answers):
                record = self.state.group(group)
                assert record is not None
                return (commands.remove_group, group) if not answers or self.majority_up(record) else None
            case plan.RemoveNode(node):
                return (commands.remove_node, node)
            case plan.Finish(change):
                return (commands.finish_change, change)

    def complete(self) -> bool:
        """Something that is under way ends, where those that it needs are up; whether there was something."""
        ready: list[tuple[Any, ...]] = []
        for group in self.state.groups:
            target_up = all(one.node not in self.down for one in group.target if one.role is Role.JOINING)
            if not group.settled and target_up and self.majority_up(group):
                ids = [replica.id for replica in group.target]
                ready.append((commands.group_shaped, group.id, group.generation, ids))
        for move in self.state.moves:
            pair = [group for group in self.state.groups if group.id in (move.giver, move.receiver)]
            fits = all(self.majority_up(group) for group in pair)
            to = "receiver" if fits and self.random.random() < 0.8 else "giver"
            if fits or self.random.random() < 0.5:
                ready.append((commands.end_move, move.id, to))
        if not ready:
            return False
        command = self.random.choice(ready)
        again = False
        if command[0] is commands.end_move:
            move = self.state.move(command[1])
            assert move is not None
            if command[2] == "receiver" and move.id not in self.before:
                self.moved += len(move.slots)
            # Of what had begun before the last decision another end was counted on: so count anew.
            node = self.state.node(move.receiver)
            expected = "receiver" if node is not None and node.stays else "giver"
            again = self.bound is not None and move.id in self.before and command[2] != expected
        else:
            shifting = self.state.group(command[1])
            assert shifting is not None  # and that it is shaped was committed by those of the target: they have all
            self.holders[shifting.id] |= {one.id for one in shifting.target if one.node not in self.down}
        self.do(*command)
        if again:
            self.decided()
        return True

    def turn(self) -> None:
        """One turn of the conductor, or of those that carry out what it began."""
        steps = plan.next_steps(self.view())
        begun = bool(steps) and self.random.random() < 0.6 and self.begin(self.random.choice(steps))
        if not begun and not self.complete() and (not steps or self.random.random() < 0.1):
            self.stuck()
        if self.state.change is None:
            self.finished()

    def stuck(self) -> None:
        """Nothing can be done: it is paused, or waits for a node that is down. The operator helps."""
        change = self.state.change
        assert change is not None
        if change.paused:
            self.do(commands.resume_change)
            return
        back = [node for node in self.down if (one := self.state.node(node)) is not None and not one.dead]
        waits = plan.waiting_for(self.view()) or plan.next_steps(self.view())
        assert back or waits, f"nothing to do and nobody down: {self.view()}"
        if not back:
            return  # chance kept a move from ending
        node = self.random.choice(sorted(back))
        self.down.discard(node)
        if self.may_lose(node) and self.random.random() < 0.6:
            self.leave(node, dead=True)
        self.follow()

    def settle(self) -> None:
        """The change ends, whatever happens."""
        for turn in range(STEPS_MAX):
            if self.state.change is None:
                return
            if turn % PATIENCE == PATIENCE - 1:  # moves to a group without majority end, and begin again
                self.stuck()
            self.turn()
        raise AssertionError(f"the change does not end: {plan.waiting_for(self.view())} {plan.next_steps(self.view())}")

    # --- all of it ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for _ in range(self.random.randint(2, 6)):
            self.operator()
            for _ in range(self.random.randint(0, 40)):
                if self.state.change is not None:
                    self.turn()
                if self.random.random() < 0.03:
                    self.operator()
                if self.old and self.random.random() < 0.05:
                    self.late()
            if self.random.random() < 0.5:
                self.settle()
        self.settle()

    def late(self) -> None:
        """A command of an earlier view arrives: it does no harm, though it may cost moves."""
        if self.tried(*self.old.pop(self.random.randrange(len(self.old)))) and self.state.moves:
            self.bound = None

    def finished(self) -> None:
        """After a change everything is as the ring says."""
        state = self.state
        assert plan.next_steps(self.view()) == []
        self.changes += 1
        staying = [node.id for node in state.nodes]
        assert [group.id for group in state.groups] == staying
        for group in state.groups:
            at = staying.index(group.id)
            members = {staying[(at + step) % len(staying)] for step in range(min(state.replication, len(staying)))}
            assert group.settled
            assert set(group.nodes) == members
        assert state.meta_group is not None
        assert set(state.meta_group.nodes) == set(staying)
        assert len(state.meta_group.voters) == min(7, len(staying))
        assert state.moves == []
        if self.bound is not None:
            counts = [self.owners.count(node) for node in staying]
            assert max(counts) - min(counts) <= 1
            assert self.moved == self.bound, f"{self.moved} slots moved, {self.bound} were needed"
        self.bound = None
