"""Plans of membership as pure functions: what they say in plain cases, and their properties."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.partition.balance import even_moves, load_moves, quotas
from iotdb_cluster.partition.plan import (
    AddMetaMember,
    CreateGroup,
    DissolveGroup,
    EndMove,
    Finish,
    ForceGroup,
    MoveSlots,
    RemoveMetaMember,
    RemoveNode,
    ShiftGroup,
    next_steps,
    rebalance,
    waiting_for,
    whole_plan,
)
from iotdb_cluster.partition.ring import Ring
from iotdb_cluster.partition.view import ClusterView, GroupView, MemberView, MoveView, ReplicaView
from tests.partition.histories import fewest_moves

SLOTS = 60


def groups_of(ring: Ring, replication: int) -> tuple[GroupView, ...]:
    """As the ring says; replica ids are 100 * header + node."""
    members = {header: ring.members(header, replication) for header in ring.nodes}
    return tuple(
        GroupView(header, 1, tuple(ReplicaView(100 * header + node, node) for node in nodes))
        for header, nodes in members.items()
    )


def formed(nodes: int, replication: int, slots: int = SLOTS) -> ClusterView:
    """A cluster as it is after its founding."""
    ring = Ring(range(1, nodes + 1))
    owners = tuple(1 + slot * nodes // slots for slot in range(slots))
    voters, learners = ring.nodes[:7], ring.nodes[7:]
    return ClusterView(
        tuple(map(MemberView, ring.nodes)), replication, groups_of(ring, replication), owners, voters, learners
    )


def kinds(steps: list[Any]) -> list[str]:
    return [type(step).__name__ for step in steps]


# --- plain cases ------------------------------------------------------------------------------------------------------


def test_nothing_is_to_come_of_no_change() -> None:
    assert next_steps(formed(3, 3)) == []
    assert whole_plan(formed(3, 3)) == []
    assert next_steps(replace(formed(3, 3), change=9)) == [Finish(9)]


def test_a_node_joins() -> None:
    plan = whole_plan(formed(3, 3).with_joining(4))
    assert plan[:2] == [AddMetaMember(4), CreateGroup(4)]
    assert plan[2:4] == [ShiftGroup(2, (4,), (201,)), ShiftGroup(3, (4,), (302,))]
    assert plan[4:] == [
        MoveSlots(1, 4, tuple(range(15, 20))),
        MoveSlots(2, 4, tuple(range(35, 40))),
        MoveSlots(3, 4, tuple(range(55, 60))),
        Finish(1),
    ]


def test_the_first_steps_wait_for_each_other() -> None:
    view = formed(3, 3).with_joining(4)
    assert next_steps(view) == [AddMetaMember(4)]
    assert next_steps(view.with_meta(4, voter=True)) == [CreateGroup(4)]
    assert next_steps(replace(view, paused=True)) == []
    assert waiting_for(replace(view, paused=True)) == ["the change is paused"]
    assert whole_plan(replace(view, paused=True)) == whole_plan(view)


def test_groups_grow_while_there_are_fewer_nodes_than_replicas() -> None:
    plan = whole_plan(formed(1, 3).with_joining(2))
    assert plan[:3] == [AddMetaMember(2), CreateGroup(2), ShiftGroup(1, (2,), ())]
    assert plan[3:] == [MoveSlots(1, 2, tuple(range(30, 60))), Finish(1)]


def test_the_eighth_node_is_a_learner_of_the_meta_group_until_a_voter_leaves() -> None:
    assert whole_plan(formed(7, 3).with_joining(8))[0] == AddMetaMember(8, voter=False)
    plan = whole_plan(formed(8, 3).with_leaving(2))
    assert plan[0] == AddMetaMember(8, voter=True)
    assert RemoveMetaMember(2) in plan


def test_a_node_leaves() -> None:
    plan = whole_plan(formed(4, 3).with_leaving(1))
    shifts = [ShiftGroup(3, (2,), (301,)), ShiftGroup(4, (3,), (401,))]
    assert plan[:2] == shifts
    assert [step for step in plan if isinstance(step, MoveSlots)] == [
        MoveSlots(1, 2, tuple(range(5))), MoveSlots(1, 3, tuple(range(5, 10))), MoveSlots(1, 4, tuple(range(10, 15))),
    ]  # fmt: skip
    assert plan[-4:] == [DissolveGroup(1), RemoveMetaMember(1), RemoveNode(1), Finish(1)]


@pytest.mark.parametrize("replication", [1, 2])
def test_a_live_node_leaves_with_few_copies(replication: int) -> None:
    """The only copy moves; nothing is forced."""
    plan = whole_plan(formed(3, replication).with_leaving(2))
    assert "ForceGroup" not in kinds(plan)
    assert sum(len(step.slots) for step in plan if isinstance(step, MoveSlots)) == 20
    assert kinds(plan)[-4:] == ["DissolveGroup", "RemoveMetaMember", "RemoveNode", "Finish"]


def test_a_dead_node_of_two_copies_is_removed_by_force() -> None:
    plan = whole_plan(formed(3, 2).with_leaving(2, dead=True))
    assert plan[:4] == [
        RemoveMetaMember(2), ForceGroup(1, 2, (102,)), ForceGroup(2, 2, (202,)), ShiftGroup(1, (3,), ()),
    ]  # fmt: skip
    assert kinds(plan)[-3:] == ["DissolveGroup", "RemoveNode", "Finish"]


def test_a_dead_node_of_three_copies_needs_no_force() -> None:
    plan = whole_plan(formed(4, 3).with_leaving(2, dead=True))
    assert kinds(plan)[0] == "RemoveMetaMember"
    assert "ForceGroup" not in kinds(plan)


def test_a_machine_is_replaced() -> None:
    view = formed(3, 3).with_leaving(2, dead=True).with_joining(4)
    plan = whole_plan(view)
    assert plan[:3] == [RemoveMetaMember(2), AddMetaMember(4), CreateGroup(4)]
    assert {(step.group, step.add, step.remove) for step in plan if isinstance(step, ShiftGroup)} == {
        (1, (4,), (102,)), (3, (4,), (302,)),
    }  # fmt: skip
    assert {(step.giver, step.receiver) for step in plan if isinstance(step, MoveSlots)} == {(2, 4)}


def test_a_dead_node_that_is_yet_to_be_removed_gets_nothing() -> None:
    """The meta group was forced without nodes 1 and 3; node 1 is being removed: no group goes to node 3 meanwhile."""
    view = formed(4, 2)
    view = replace(view, nodes=tuple(replace(node, dead=node.id == 3) for node in view.nodes), meta_voters=(2, 4))
    plan = whole_plan(view.with_leaving(1, dead=True))
    assert kinds(plan).count("ForceGroup") == 4  # each has one copy left, and loses it once
    assert {step.group: step.add for step in plan if isinstance(step, ShiftGroup)} == {2: (4,), 4: (2,)}
    moves = [step for step in plan if isinstance(step, MoveSlots)]
    assert {step.receiver for step in moves} == {2, 4}
    assert {slot for step in moves for slot in step.slots} == {slot for slot in range(SLOTS) if slot // 15 in (0, 2)}
    assert plan[-3:] == [DissolveGroup(1), RemoveNode(1), Finish(1)]


def test_a_lost_majority_waits_for_the_operator() -> None:
    view = formed(5, 3).with_leaving(1, dead=True).with_leaving(2, dead=True)
    plan = whole_plan(view)
    assert "Finish" not in kinds(plan)
    texts = waiting_for(view)
    assert "group 1 has lost its majority with the nodes [1, 2]: bring one back, or force" in texts[0]


def test_replication_up_and_down() -> None:
    adds = [(1, (2, 3)), (2, (3, 4)), (3, (1, 4)), (4, (1, 2))]
    up = [*(ShiftGroup(group, add, ()) for group, add in adds), Finish(1)]
    assert whole_plan(formed(4, 1).with_replication(3)) == up
    removes = [(1, 103), (2, 204), (3, 301), (4, 402)]
    down = [*(ShiftGroup(group, (), (replica,)) for group, replica in removes), Finish(1)]
    assert whole_plan(formed(4, 3).with_replication(2)) == down


def test_a_shift_waits_for_the_moves_of_its_group() -> None:
    move = MoveView(9, 1, 4, (19,))
    view = formed(4, 3).with_leaving(2, dead=True).with_meta(2, voter=None)
    assert {step.group for step in next_steps(view) if isinstance(step, ShiftGroup)} == {1, 4}
    moving = replace(view, moves=(move,))
    assert next_steps(moving) == []
    assert waiting_for(moving) == ["move 9: 1 slots from group 1 to group 4"]


def test_a_move_to_who_leaves_ends_at_its_giver() -> None:
    view = replace(formed(4, 3).with_leaving(4, dead=True), moves=(MoveView(9, 1, 4, (3,)),))
    assert next_steps(view)[0] == EndMove(9)


def test_a_group_without_slots_of_a_dead_node_is_only_removed() -> None:
    view = formed(3, 1)
    view = replace(view, owners=tuple(1 + slot % 2 for slot in range(SLOTS))).with_leaving(3, dead=True)
    plan = whole_plan(view)
    assert plan == [RemoveMetaMember(3), DissolveGroup(3, answers=False), RemoveNode(3), Finish(1)]


def test_a_rebalance_moves_what_is_wanted() -> None:
    view = formed(3, 3).with_wanted([(1, 2, (3, 4)), (3, 2, (50,))])
    assert whole_plan(view) == [MoveSlots(1, 2, (3, 4)), MoveSlots(3, 2, (50,)), Finish(1)]
    arriving = replace(view, moves=(MoveView(9, 2, 1, (3,)),))
    assert next_steps(arriving) == [MoveSlots(1, 2, (4,)), MoveSlots(3, 2, (50,))]
    half = replace(view, moves=(MoveView(9, 1, 2, (3,)),))
    assert next_steps(half) == [MoveSlots(1, 2, (4,)), MoveSlots(3, 2, (50,))]


def test_rebalance_by_number_and_by_load() -> None:
    view = formed(3, 3)
    assert rebalance(view) == []
    heavy = [0] * SLOTS
    heavy[0] = heavy[1] = heavy[2] = 100
    steps = rebalance(view, heavy)
    assert sum(len(step.slots) for step in steps) == 2
    assert {step.receiver for step in steps} == {2, 3}


# --- properties -------------------------------------------------------------------------------------------------------

OWNERS = st.lists(st.integers(1, 6), min_size=1, max_size=60)
GROUPS = st.sets(st.integers(1, 7), min_size=1, max_size=6)


def moved(owners: list[int], moves: dict[tuple[int, int], tuple[int, ...]]) -> list[int]:
    after = list(owners)
    for (giver, receiver), slots in moves.items():
        assert giver != receiver
        assert all(low < high for low, high in pairwise(slots))
        for slot in slots:
            assert after[slot] == giver
            after[slot] = receiver
    return after


@given(OWNERS, GROUPS)
@settings(max_examples=400, deadline=None)
def test_slots_become_even_by_the_fewest_moves(owners: list[int], groups: set[int]) -> None:
    moves = even_moves(owners, groups)
    after = Counter(moved(owners, moves))
    assert set(after) <= groups
    assert max(after.values()) - min(after[group] for group in groups) <= 1
    counts = dict.fromkeys(groups, 0) | Counter(owners)
    assert sum(map(len, moves.values())) == fewest_moves(counts, sorted(groups))
    assert even_moves(moved(owners, moves), groups) == {}


@given(OWNERS, GROUPS, st.data())
@settings(max_examples=400, deadline=None)
def test_what_is_left_of_a_plan_is_the_plan(owners: list[int], groups: set[int], data: st.DataObject) -> None:
    """After any part of the moves the answer is the rest of them, so nothing ever moves to and fro."""
    moves = even_moves(owners, groups)
    done = {
        pair: tuple(slot for slot in slots if data.draw(st.booleans(), label=str(slot)))
        for pair, slots in moves.items()
    }
    left = {pair: tuple(slot for slot in slots if slot not in done[pair]) for pair, slots in moves.items()}
    assert even_moves(moved(owners, done), groups) == {pair: slots for pair, slots in left.items() if slots}


@given(st.dictionaries(st.integers(1, 9), st.integers(0, 30), min_size=1))
@settings(deadline=None)
def test_quotas_are_even(counts: dict[int, int]) -> None:
    total = sum(counts.values())
    found = quotas(counts, total)
    assert sum(found.values()) == total
    assert max(found.values()) - min(found.values()) <= 1
    assert quotas(dict(reversed(counts.items())), total) == found


@given(OWNERS, st.data())
@settings(max_examples=300, deadline=None)
def test_moves_by_load(owners: list[int], data: st.DataObject) -> None:
    groups = set(owners) | data.draw(GROUPS)
    weights = [data.draw(st.sampled_from([0, 0, 1, 2, 5, 100, 1_000])) for _ in owners]
    moves = load_moves(owners, groups, weights)
    after = moved(owners, moves)
    taken = {slot for slots in moves.values() for slot in slots}
    assert all(weights[slot] for slot in taken)

    def loads(table: list[int]) -> dict[int, int]:
        return {group: sum(w for w, owner in zip(weights, table, strict=True) if owner == group) for group in groups}

    before, now = loads(owners), loads(after)
    average = sum(weights) / len(groups)
    assert sum(now.values()) == sum(before.values())
    assert max(now.values()) <= max(before.values())
    assert max(now.values()) - min(now.values()) <= max(before.values()) - min(before.values())
    # Either it is even within the tolerance, or no slot that is still where it was would lessen the difference of the
    # heaviest and the lightest.
    heavy = max(groups, key=lambda group: (now[group], -group))
    light = min(groups, key=lambda group: (now[group], group))
    left = [weights[slot] for slot, owner in enumerate(after) if owner == heavy and slot not in taken and weights[slot]]
    assert now[heavy] <= average * 1.02 or all(weight >= now[heavy] - now[light] for weight in left)
    assert load_moves(owners, sorted(groups, reverse=True), weights) == moves


def test_moves_by_load_are_few() -> None:
    """One heavy slot among light ones: it goes, not the hundred that would weigh as much."""
    owners = [1] * 50 + [2] * 50
    weights = [1] * 100
    weights[7] = weights[8] = 1_000
    moves = load_moves(owners, [1, 2], weights)
    assert sum(map(len, moves.values())) == 1


def test_slots_need_a_group() -> None:
    with pytest.raises(InvariantViolation):
        even_moves([1, 1], [])
    with pytest.raises(InvariantViolation):
        load_moves([1, 3], [1, 2], [1, 1])


@given(st.integers(1, 9), st.integers(1, 4), st.data())
@settings(max_examples=200, deadline=None)
def test_a_whole_plan_ends_as_the_ring_says(nodes: int, replication: int, data: st.DataObject) -> None:
    """Joins and leaves one after another; each step of the plan is one of the next steps when its turn comes."""
    view = formed(nodes, replication)
    highest = nodes
    for _ in range(data.draw(st.integers(1, 3))):
        staying = len(view.staying)
        joins = data.draw(st.booleans()) or staying <= max(replication, 1)
        if joins:
            highest += 1
            changed = view.with_joining(highest)
        else:
            changed = view.with_leaving(data.draw(st.sampled_from(view.staying)))
        plan = whole_plan(changed)
        assert plan == whole_plan(changed)
        assert plan[-1] == Finish(1)
        assert plan[: len(next_steps(changed))] == next_steps(changed)
        owners = list(changed.owners)
        for step in plan:
            if isinstance(step, MoveSlots):
                for slot in step.slots:
                    assert owners[slot] == step.giver
                    owners[slot] = step.receiver
        counts = Counter(owners)
        assert set(counts) <= set(changed.staying)
        assert max(counts.values()) - min(counts[group] for group in changed.staying) <= 1
        total = sum(len(step.slots) for step in plan if isinstance(step, MoveSlots))
        before = dict.fromkeys(changed.staying, 0) | Counter(changed.owners)
        assert total == fewest_moves(before, list(changed.staying))
        view = replace(
            formed(1, replication),
            nodes=tuple(map(MemberView, changed.staying)),
            groups=groups_of(changed.ring, replication),
            owners=tuple(owners),
            meta_voters=changed.staying[:7],
            meta_learners=changed.staying[7:],
        )
