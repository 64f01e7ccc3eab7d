"""The commands of membership: what they decide, what they refuse and with which words."""

from __future__ import annotations

import struct
from typing import Any

import crc32c
import pytest

from iotdb_cluster import packing
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta import META_GROUP, ChangeKind, MetaState, NodeState, Replica, Role, commands
from iotdb_cluster.meta.commands import DATA_REPLICAS_FROM
from tests.meta.model import AGREED, Meta, address, bootstrap


@pytest.fixture
def meta() -> Meta:
    return Meta.founded()


def roles(meta: Meta, number: int) -> dict[int, str]:
    group = meta.state.group(number)
    assert group is not None
    return {replica.node: str(replica.role) for replica in group.replicas}


def shape(meta: Meta, number: int) -> None:
    group = meta.state.group(number)
    assert group is not None
    meta.do(commands.group_shaped, number, group.generation, [replica.id for replica in group.target])


def replica_of(meta: Meta, number: int, node: int) -> int:
    group = meta.state.group(number)
    assert group is not None
    replica = group.replica_of(node)
    assert replica is not None
    return replica.id


def test_members_do_not_change_while_older_programs_run_beside_newer_ones(meta: Meta) -> None:
    """What a change puts into the logs of groups the older ones may not know; the dead do not count."""
    for node in (1, 2, 3):
        meta.do(commands.register_node, node, 70 + node, 1, address(node), 1)
    settings = {**AGREED, "default_replica_num": meta.state.replication}
    meta.refuses("knows level 2: 1, 2, 3; upgrade", commands.join_node, address(4), 174, 1, 2, settings, 0)
    meta.do(commands.register_node, 1, 71, 2, address(1), 2)
    text = "the programs of these nodes are older than another one's, which knows level 2: 2, 3; upgrade them first"
    meta.refuses(text, commands.join_node, address(4), 174, 1, 2, settings, 0)
    meta.refuses(text, commands.set_replication, 2)
    meta.refuses(text, commands.rebalance, [(1, 2, [meta.state.table.slots_of(1)[0]])])
    for node in (2, 3):
        meta.do(commands.register_node, node, 70 + node, 2, address(node), 2)
    assert meta.do(commands.join_node, address(4), 174, 1, 2, settings, 0)["node"] == 4


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_node_joins(meta: Meta) -> None:
    state = meta.state
    answer = meta.join(4)
    assert answer["node"] == 4
    assert answer["founders"] == [1, 2, 3]
    assert answer["nodes"] == [[node, *address(node)] for node in (1, 2, 3, 4)]
    node = state.node(4)
    assert node is not None
    assert (node.state, node.incarnation, node.start) == (NodeState.JOINING, 174, 1)
    assert state.change is not None
    assert (state.change.kind, state.change.node, state.change.id) == (ChangeKind.JOIN, 4, state.applied)
    assert state.members_changed == state.applied
    assert roles(meta, META_GROUP) == {1: "voter", 2: "voter", 3: "voter", 4: "joining"}
    assert meta.join(4) == answer
    assert meta.do(commands.register_node, 4, 174, 2, address(4), 1) == {"level": 1}
    change = state.change.id
    meta.refuses("[4] head no group", commands.finish_change, change)

    meta.do(commands.create_group, 4)
    group = state.group(4)
    assert group is not None
    assert group.nodes == (4, 1, 2)
    assert group.founders == tuple(replica.id for replica in group.replicas)
    assert min(group.founders) == DATA_REPLICAS_FROM + 9
    meta.do(commands.create_group, 4)
    assert state.group(4) == group
    meta.refuses("groups [0] change their members", commands.finish_change, change)
    meta.do(commands.group_shaped, META_GROUP, 1, [1, 2, 3, 4])

    gone = replica_of(meta, 3, 2)
    meta.do(commands.shift_group, 3, [4], [gone])
    assert roles(meta, 3) == {3: "voter", 1: "voter", 2: "leaving", 4: "joining"}
    meta.refuses("changes its members", commands.begin_move, 3, 4, [9_999])
    meta.reload()
    state = meta.state
    assert not state.removed_replica(gone)
    shape(meta, 3)
    shape(meta, 3)
    assert roles(meta, 3) == {3: "voter", 1: "voter", 4: "voter"}
    assert state.removed_replica(gone)
    assert not state.removed_replica(gone + 1_000)
    group = state.group(3)
    assert group is not None
    assert gone in group.founders

    move = meta.do(commands.begin_move, 3, 4, [9_999, 9_998])["move"]
    assert move == state.applied
    assert [(one.id, one.giver, one.receiver, one.slots) for one in state.moves] == [
        (move, 3, 4, ((9_998, 2), (9_999, 2)))
    ]
    meta.refuses("1 moves are under way", commands.finish_change, change)
    meta.refuses("slots of group 3 move", commands.shift_group, 3, [2], [])
    meta.reload()
    state = meta.state
    assert state.move(move) == state.moves[0]
    assert meta.do(commands.end_move, move, "receiver") == {"over": False}
    assert meta.do(commands.end_move, move, "giver") == {"over": True}
    assert state.owner_of_slot(9_999)[1] == 2
    assert state.owner_of_slot(9_999)[0].id == 4
    meta.do(commands.finish_change, change)
    meta.do(commands.finish_change, change)
    assert state.change is None
    node = state.node(4)
    assert node is not None
    assert node.state is NodeState.NORMAL


def test_a_move_that_ends_at_its_giver(meta: Meta) -> None:
    meta.join(4)
    meta.do(commands.create_group, 4)
    move = meta.do(commands.begin_move, 1, 4, [7])["move"]
    meta.do(commands.end_move, move, "giver")
    group, epoch = meta.state.owner_of_slot(7)
    assert (group.id, epoch) == (1, 3)
    assert meta.state.moves == []
    assert meta.do(commands.begin_move, 1, 4, [7])["move"] > move
    assert meta.state.moves[0].slots == ((7, 4),)


def test_refused_joins(meta: Meta) -> None:
    def refused(part: str, at: int, incarnation: int, replaces: int = 0, **agreed: Any) -> None:
        settings = {**AGREED, **agreed}
        meta.refuses(part, commands.join_node, address(at), incarnation, 1, 1, settings, replaces)

    refused("cluster_name is 'other' at 127.0.0.1:9009 and 'c' in the cluster", 4, 9, cluster_name="other")
    text = "default_replica_num is 2 at 127.0.0.1:9009 and 3 in the cluster; hash_salt is 1"
    refused(text, 4, 9, hash_salt=1, default_replica_num=2)
    refused("slot_strategy is 'round_robin' at", 4, 9, slot_strategy="round_robin")
    refused("has the identity of node 2: its disks are a copy", 4, 72)
    refused("node 2 is at 127.0.0.1:9005 already, with other data: to replace it", 2, 9)
    refused("node 9 is not found in the cluster, so it cannot be replaced", 4, 9, 9)
    refused("node 2 is at 127.0.0.1:9005 already", 2, 9, 3)
    meta.join(4)
    refused("the previous membership change has not finished (node 4 joins)", 5, 9)
    text = "the cluster is not founded yet"
    Meta().refuses(text, commands.join_node, address(1), 1, 1, 1, {}, 0)


def test_a_machine_is_replaced(meta: Meta) -> None:
    answer = meta.join(2, incarnation=99, replaces=2)
    assert answer["node"] == 4
    state = meta.state
    assert state.change is not None
    assert (state.change.kind, state.change.node) == (ChangeKind.REPLACE, 4)
    assert [(node.id, str(node.state), node.dead) for node in state.nodes] == [
        (1, "normal", False), (2, "leaving", True), (3, "normal", False), (4, "joining", False),
    ]  # fmt: skip
    assert meta.join(2, incarnation=99, replaces=2) == answer
    meta.do(commands.register_node, 4, 99, 2, address(2), 1)
    assert state.ring.nodes == (1, 3, 4)


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_refused_leaves(meta: Meta) -> None:
    text = "the cluster size is too small, no node can be removed: 3 nodes for 3 replicas"
    meta.refuses(text, commands.leave_node, 1, False)
    meta.refuses(text, commands.leave_node, 1, True)
    meta.refuses("node 9 is not found in the cluster", commands.leave_node, 9, False)
    meta.join(4)
    text = "the previous membership change has not finished (node 4 joins)"
    meta.refuses(text, commands.leave_node, 1, False)
    one = Meta.founded(1, replication=1)
    one.refuses("node 1 is the last node of the cluster", commands.leave_node, 1, True)
    two = Meta.founded(2, replication=1)
    two.refuses("node 2 holds the only copy of 5000 slots", commands.leave_node, 2, True)

    two.refuses("the group headed by node 2", commands.join_node, address(2), 9, 1, 1, agreed_of(two), 2)


def agreed_of(meta: Meta) -> dict[str, Any]:
    return {**AGREED, "default_replica_num": meta.state.replication}


def test_a_replica_that_joins_is_no_copy_yet() -> None:
    meta = Meta.founded(3, replication=1)
    meta.do(commands.leave_node, 2, False)
    meta.do(commands.shift_group, 2, [3], [replica_of(meta, 2, 2)])
    meta.refuses("node 2 holds the only copy of", commands.leave_node, 2, True)
    shape(meta, 2)
    assert meta.do(commands.leave_node, 2, True) == {"change": meta.state.change.id}  # type: ignore[union-attr]
    meta.do(commands.group_shaped, META_GROUP, 1, [1, 3])
    meta.refuses("node 2 still heads a group", commands.remove_node, 2)


def test_a_dead_node_is_removed_while_a_change_waits_for_it(meta: Meta) -> None:
    meta.join(4)
    change = meta.do(commands.leave_node, 2, True)["change"]
    assert meta.state.change is not None
    assert change == meta.state.change.id
    assert meta.state.change.kind is ChangeKind.JOIN
    meta.refuses("node 4 is not leaving", commands.remove_node, 4)
    meta.refuses("node 2 is still a member of group 0", commands.remove_node, 2)


def test_a_node_leaves(meta: Meta) -> None:
    meta = Meta.founded(4, replication=1)
    change = meta.do(commands.leave_node, 1, False)["change"]
    assert meta.do(commands.leave_node, 1, False) == {"change": change}
    node = meta.state.node(1)
    assert node is not None
    assert (node.state, node.dead) == (NodeState.LEAVING, False)
    meta.refuses("node 1 is leaving: its group takes no slots", commands.begin_move, 2, 1, [2_500])
    meta.refuses("group 1 owns 2500 slots", commands.remove_group, 1)
    meta.refuses("the header of group 2 stays", commands.remove_group, 2)
    move = meta.do(commands.begin_move, 1, 2, list(range(2_500)))["move"]
    meta.do(commands.end_move, move, "receiver")
    meta.refuses(f"change {change} is not finished: nodes [1] are leaving", commands.finish_change, change)
    meta.do(commands.remove_group, 1)
    meta.do(commands.remove_group, 1)
    assert meta.state.group(1) is None
    meta.refuses("node 1 is still a member of group 0", commands.remove_node, 1)
    meta.refuses("voters among them", commands.group_shaped, META_GROUP, 1, [])
    meta.refuses("not [7]", commands.group_shaped, META_GROUP, 1, [2, 3, 4, 7])
    meta.refuses("node 3 stays in the cluster", commands.group_shaped, META_GROUP, 1, [2, 4])
    meta.do(commands.group_shaped, META_GROUP, 1, [2, 3, 4])
    assert meta.state.removed_replica(1)
    meta.do(commands.remove_node, 1)
    meta.do(commands.remove_node, 1)
    meta.do(commands.finish_change, change)
    meta.reload()
    assert meta.state.removed_node(1)
    assert not meta.state.removed_node(5)
    meta.refused(504, "node 1 is not a member of the cluster", commands.register_node, 1, 71, 2, address(1), 1)
    # Its identifier is never used again, nor is its group's.
    assert meta.join(1, incarnation=99)["node"] == 5


# --- other changes ----------------------------------------------------------------------------------------------------


def test_replication_changes(meta: Meta) -> None:
    assert meta.do(commands.set_replication, 3) == {"change": 0}
    assert meta.state.change is None
    meta.refuses("it must be above 0", commands.set_replication, 0)
    change = meta.do(commands.set_replication, 2)["change"]
    assert meta.state.replication == meta.state.settings["replication"] == 2
    meta.refuses("(the replication number changes)", commands.set_replication, 3)
    meta.do(commands.finish_change, change)
    assert meta.state.change is None


def test_pause(meta: Meta) -> None:
    meta.refuses("no membership change is under way", commands.pause_change)
    meta.join(4)
    meta.do(commands.create_group, 4)
    move = meta.do(commands.begin_move, 1, 4, [7])["move"]
    meta.do(commands.pause_change)
    meta.reload()
    for command, *fields in (
        (commands.begin_move, 1, 4, [8]),
        (commands.shift_group, 2, [4], []),
        (commands.create_group, 1_000),
        (commands.finish_change, meta.state.change.id if meta.state.change else 0),
    ):
        meta.refuses("the membership change is paused", command, *fields)
    assert meta.do(commands.end_move, move, "receiver") == {"over": False}
    meta.do(commands.resume_change)
    meta.do(commands.begin_move, 1, 4, [8])


def test_rebalance(meta: Meta) -> None:
    assert meta.do(commands.rebalance, []) == {"change": 0}
    meta.refuses("slot 9999 is not group 1's to give", commands.rebalance, [(1, 2, [9_999])])
    meta.refuses("no slots move from group 1 to group 1", commands.rebalance, [(1, 1, [3])])
    meta.refuses("is no move of slots", commands.rebalance, [(1, 2, ["x"])])
    meta.do(commands.rebalance, [(1, 2, [3, 1])])
    meta.reload()
    assert meta.state.change is not None
    assert meta.state.change.wanted == ((1, 2, (1, 3)),)
    assert str(meta.state.change.kind) == "rebalance"


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_shift_is_planned_again(meta: Meta) -> None:
    """The node that a shift waits for dies: the target changes, and a report about the old one counts no more."""
    meta.join(4)
    meta.do(commands.create_group, 4)
    old = replica_of(meta, 3, 2)
    meta.do(commands.shift_group, 3, [4], [old])
    new = replica_of(meta, 3, 4)
    meta.do(commands.shift_group, 3, [4], [old])
    assert replica_of(meta, 3, 4) == new
    meta.do(commands.leave_node, 4, True)
    meta.refuses("nodes [4] are not members that stay", commands.shift_group, 3, [4], [])
    meta.do(commands.shift_group, 3, [2], [new])
    assert roles(meta, 3) == {3: "voter", 1: "voter", 2: "joining", 4: "leaving"}
    kept = [replica_of(meta, 3, node) for node in (3, 1)]
    meta.refuses("is to have the voters", commands.group_shaped, 3, 1, [*kept, new])
    meta.do(commands.group_shaped, 3, 1, [*kept, old])
    assert roles(meta, 3) == {3: "voter", 1: "voter", 2: "voter"}
    meta.refuses("there is no group 77", commands.shift_group, 77, [], [])
    everything = [*kept, old]
    meta.refuses("would have no member left", commands.shift_group, 3, [], everything)
    meta.refuses("the members of the meta group are the nodes", commands.shift_group, 0, [], [])
    meta.refuses("group 3 is at generation 1, not 2", commands.group_shaped, 3, 2, everything)


def test_force_group() -> None:
    meta = Meta.founded(3, replication=2)
    first, second = replica_of(meta, 2, 2), replica_of(meta, 2, 3)
    meta.refuses("is at generation 1: 3 is not the next one", commands.force_group, 2, 3, [first])
    meta.refuses("no replica of group 2 survives", commands.force_group, 2, 2, [first, second])
    meta.refuses("not all of [5]", commands.force_group, 2, 2, [5])
    assert meta.do(commands.force_group, 2, 2, [first]) == {"survivors": [second]}
    group = meta.state.group(2)
    assert group is not None
    assert (group.generation, group.replicas, group.founders) == (2, (Replica(second, 3),), (first, second))
    assert meta.state.removed_replica(first)
    meta.refuses("needs no force", commands.force_group, 2, 3, [])


def test_force_group_below_a_majority_loses() -> None:
    meta = Meta.founded(3, replication=3)
    dead = [replica_of(meta, 1, node) for node in (1, 2)]
    meta.refuses("a majority of group 1 is alive: it needs no force", commands.force_group, 1, 2, dead[:1])
    text = "would be lost; bring one back, or say --accept-loss"
    meta.refuses(text, commands.force_group, 1, 2, dead)
    meta.refuses("its 3334 slots (0-3333)", commands.force_group, 1, 2, dead)
    meta.do(commands.force_group, 1, 2, dead, True)
    group = meta.state.group(1)
    assert group is not None
    assert [replica.node for replica in group.replicas] == [3]
    assert meta.do(commands.set_replication, 3)["change"]  # the number is the same, and group 1 lacks replicas


def test_a_force_raises_epochs_and_ends_moves() -> None:
    """So that nothing of an earlier generation passes for what is written from now on."""
    meta = Meta.founded(3, replication=2)
    state = meta.state
    mine, other = state.table.slots_of(2), state.table.slots_of(1)
    meta.do(commands.rebalance, [(2, 1, mine[:2]), (3, 2, state.table.slots_of(3)[:1])])
    meta.do(commands.begin_move, 2, 1, mine[:1])
    meta.do(commands.begin_move, 3, 2, state.table.slots_of(3)[:1])
    meta.do(commands.force_group, 2, 2, [replica_of(meta, 2, 2)])
    assert state.moves == []
    assert state.table.slots_of(2) == mine
    assert {state.table.owner(slot)[1] for slot in mine[1:]} == {2}
    assert state.table.owner(mine[0])[1] == 4
    assert state.table.owner(state.table.slots_of(3)[0])[1] == 3
    assert {state.table.owner(slot)[1] for slot in other} == {1}
    assert state.losses == ()


def test_the_only_copy_of_slots_is_lost_when_that_is_accepted() -> None:
    meta = Meta.founded(3, replication=1)
    state = meta.state
    mine = state.table.slots_of(2)
    for number in range(40):
        meta.do(commands.create_storage_group, f"root.lost{number}")
    lost = [one.path for one in state.storage_groups() if state.slot_map.schema_slot_of(one.path) in set(mine)]
    kept = [one.path for one in state.storage_groups() if one.path not in lost]
    meta.do(commands.rebalance, [(2, 1, mine[:3]), (3, 2, state.table.slots_of(3)[:1])])
    meta.do(commands.begin_move, 2, 1, mine[:3])
    meta.do(commands.begin_move, 3, 2, state.table.slots_of(3)[:1])
    text = f"node 2 holds the only copy of {len(mine)} slots ({mine[0]}-{mine[-1]}) of the group headed by node 2: "
    meta.refuses(text + "bring it back; or say --accept-loss", commands.leave_node, 2, True)
    meta.refuses(f"are dropped whole ({lost[0]}, ", commands.leave_node, 2, True)
    before = state._cluster.dump()
    answer = meta.do(commands.leave_node, 2, True, True)
    assert (answer["lost"], answer["dropped"]) == (len(mine), lost)
    assert before != state._cluster.dump()
    assert [one.path for one in state.storage_groups()] == kept
    assert [group.id for group in state.groups] == [1, 3]
    assert state.moves == []
    assert [state.table.owner(slot) for slot in mine[:3]] == [(1, 3)] * 3  # the receiver may have them already
    assert {state.table.owner(slot)[1] for slot in mine[3:]} == {2}
    counts = state.table.counts()
    assert max(counts.values()) - min(counts.values()) <= 1
    assert [(loss.node, loss.groups, loss.slots) for loss in state.losses] == [(2, (2,), len(mine))]
    assert MetaState.load(state.dump()).losses == state.losses
    meta.do(commands.leave_node, 3, True, True)
    meta.refuses("node 1 is the last node", commands.leave_node, 1, True, True)


def test_a_machine_that_had_the_only_copy_is_replaced_when_its_loss_is_accepted() -> None:
    meta = Meta.founded(3, replication=1)
    state = meta.state
    mine = state.table.slots_of(2)
    for number in range(40):
        meta.do(commands.create_storage_group, f"root.lost{number}")
    lost = [one.path for one in state.storage_groups() if state.slot_map.schema_slot_of(one.path) in set(mine)]
    kept = [one.path for one in state.storage_groups() if one.path not in lost]
    fields = (address(2), 99, 1, 1, {**AGREED, "default_replica_num": 1}, 2)
    text = f"node 2 holds the only copy of {len(mine)} slots ({mine[0]}-{mine[-1]}) of the group headed by node 2: "
    meta.refuses(text + "bring it back; or say --accept-loss", commands.join_node, *fields)
    meta.refuses(f"are dropped whole ({lost[0]}, ", commands.join_node, *fields)
    answer = meta.do(commands.join_node, *fields, True)
    assert (answer["node"], answer["lost"], answer["dropped"]) == (4, len(mine), lost)
    assert [one.path for one in state.storage_groups()] == kept
    assert [group.id for group in state.groups] == [1, 3]
    assert {state.table.owner(slot) for slot in mine} == {(1, 2), (3, 2)}
    assert [(loss.node, loss.groups, loss.slots) for loss in state.losses] == [(2, (2,), len(mine))]
    assert MetaState.load(state.dump()).losses == state.losses
    again = meta.do(commands.join_node, *fields, True)  # the answer was lost on its way
    assert again == {key: value for key, value in answer.items() if key not in ("lost", "dropped")}
    assert len(state.losses) == 1


def test_nothing_is_lost_with_a_machine_of_which_others_have_copies(meta: Meta) -> None:
    settings = {**AGREED, "default_replica_num": meta.state.replication}
    answer = meta.do(commands.join_node, address(2), 99, 1, 1, settings, 2, True)
    assert "lost" not in answer
    assert meta.state.losses == ()


def test_the_meta_group_was_forced() -> None:
    meta = Meta.founded(2, replication=2)
    state = meta.state
    meta.refuses("no member of the meta group survives", commands.force_group, 0, 2, [1, 2], True)
    for _ in range(2):  # who leads next may report it again
        assert meta.do(commands.force_group, 0, 3, [2], True) == {"survivors": [1]}
    record, node = state.meta_group, state.node(2)
    assert record is not None
    assert node is not None
    assert (record.generation, record.replicas) == (3, (Replica(1, 1),))
    assert node.dead
    assert node.stays
    assert state.left_out(2)
    assert not state.left_out(1)
    meta.refuses("forced without it", commands.register_node, 2, 7, 9, address(2), 1)
    meta.refuses("node 1 is the last node of the cluster", commands.leave_node, 1, False)
    meta.do(commands.leave_node, 2, False)  # below the replication number: it is gone in any case
    known = MetaState.load(state.dump()).node(2)
    assert known is not None
    assert known.dead
    assert not known.stays


def test_who_was_leaving_when_the_meta_group_went_on_without_it_is_given_up_with_what_it_had() -> None:
    meta = Meta.founded(3, replication=1)
    slots = len(meta.state.table.slots_of(3))
    meta.do(commands.leave_node, 3, False)
    meta.do(commands.force_group, META_GROUP, 2, [3], True)
    meta.refuses(f"node 3 holds the only copy of {slots} slots", commands.leave_node, 3, True)
    answer = meta.do(commands.leave_node, 3, True, True)
    assert answer["lost"] == slots
    assert meta.state.change is not None
    assert answer["change"] == meta.state.change.id
    assert meta.do(commands.leave_node, 3, True, True) == {"change": meta.state.change.id}


def test_who_was_leaving_and_is_the_last_one_left_stays() -> None:
    """Else nothing could be given up for anybody, and nobody could join: the leave would wait for ever."""
    meta = Meta.founded(3, replication=1)
    meta.do(commands.leave_node, 1, False)
    meta.do(commands.force_group, META_GROUP, 2, [2, 3], True)
    node = meta.state.node(1)
    assert node is not None
    assert node.state is NodeState.NORMAL
    for dead in (2, 3):
        assert meta.do(commands.leave_node, dead, True, True)["lost"]
    assert len(meta.state.table.slots_of(1)) == SLOTS


def test_a_change_ends_though_the_dead_are_not_removed_yet() -> None:
    """A newcomer that dies before it heads a group, and the meta group is forced without it."""
    meta = Meta.founded(2, replication=1)
    meta.join(3)
    meta.do(commands.force_group, META_GROUP, 2, [2, 3], True)
    change = meta.state.change
    assert change is not None
    meta.do(commands.finish_change, change.id)
    assert meta.state.change is None
    assert meta.do(commands.leave_node, 3, True)["change"]


def test_force_group_while_it_shifts() -> None:
    """Survivors must meet every majority of what was and of what is to be."""
    meta = Meta.founded(4, replication=2)
    meta.do(commands.leave_node, 2, False)
    gone = replica_of(meta, 1, 2)
    meta.do(commands.shift_group, 1, [3], [gone])
    assert roles(meta, 1) == {1: "voter", 2: "leaving", 3: "joining"}
    kept, new = replica_of(meta, 1, 1), replica_of(meta, 1, 3)
    meta.refuses(f"were a majority of [{kept}, {gone}]", commands.force_group, 1, 2, [kept, gone])
    meta.refuses(f"were a majority of [{kept}, {new}]", commands.force_group, 1, 2, [kept, new])
    meta.do(commands.force_group, 1, 2, [gone])
    assert roles(meta, 1) == {1: "voter", 3: "voter"}


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_version_1_is_loaded() -> None:
    """What the first release wrote: replica ids from the number after the founders, voters as booleans."""
    meta = Meta()
    payload = commands.bootstrap(
        {"cluster_name": "c", "replication": 3, "partition_interval_ms": 604_800_000},
        [(node, address(node)) for node in range(1, 9)],
        "hash",
    )
    head, _ = packing.unpack(payload)
    del head["first_replica"]
    meta.entry(packing.pack(head)).unwrap()
    head, _ = packing.unpack(meta.state.dump()[9:])
    for name in ("first_replica", "highest_node", "moves", "change"):
        del head[name]
    head["nodes"] = [node[:5] for node in head["nodes"]]
    head["groups"] = [
        [number, generation, [[item, node, role == "voter"] for item, node, role in replicas]]
        for number, generation, replicas, *_ in head["groups"]
    ]
    body = packing.pack(head)
    old = struct.pack(">4sBI", b"META", 1, crc32c.crc32c(body)) + body
    loaded = MetaState.load(old)
    assert loaded.dump() == meta.state.dump()
    assert loaded.groups[0].founders == tuple(range(9, 12))
    assert loaded.meta_group is not None
    assert loaded.meta_group.replicas[-1].role is Role.LEARNER
    # Nodes that join are numbered behind the replicas, so that no number means two things.
    meta.state = loaded
    assert meta.join(9)["node"] == 33
    assert meta.do(commands.create_group, 33) is None
    assert loaded.group(33).founders == (34, 35, 36)  # type: ignore[union-attr]


def test_bootstrap_refuses_replica_ids_among_the_nodes() -> None:
    head, _ = packing.unpack(bootstrap())
    result = Meta().entry(packing.pack({**head, "first_replica": 3}))
    assert "replica ids count from 3" in result.error.message


def test_the_strategy_of_slots_is_fixed_at_the_founding() -> None:
    meta = Meta.founded(4, slot_strategy="round_robin")
    slots = meta.state.slot_map
    assert [meta.state.owner_of_slot(slots.schema_slot_of(f"root.sg_{n}"))[0].id for n in range(8)] == [1, 2, 3, 4] * 2
    meta.reload()
    assert meta.state.slot_map == slots
    assert Meta.founded(3).state.slot_map.strategy == "hash"
    result = Meta().entry(bootstrap(slot_strategy="odd"))
    assert result.error.message == "slot_strategy is 'odd': it must be one of hash, round_robin"
