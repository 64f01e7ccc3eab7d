"""The state machine of the meta group."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster import packing
from iotdb_cluster.auth import Privilege
from iotdb_cluster.errors import CorruptData, InvariantViolation, OutcomeUnknown, Status
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta import LEVEL, META_GROUP, META_VOTERS_MAX, MetaState, Replica, commands
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import PathPattern
from tests.meta.model import Meta, address, bootstrap


@pytest.fixture
def meta() -> Meta:
    made = Meta()
    made.entry(bootstrap()).unwrap()
    return made


# --- bootstrap and members --------------------------------------------------------------------------------------------


def test_bootstrap(meta: Meta) -> None:
    state = meta.state
    assert state.bootstrapped
    assert [node.id for node in state.nodes] == [1, 2, 3]
    assert state.meta_group is not None
    assert state.meta_group.replicas == (Replica(1, 1), Replica(2, 2), Replica(3, 3))
    assert [(group.id, group.header, group.generation, group.nodes) for group in state.groups] == [
        (1, 1, 1, (1, 2, 3)),
        (2, 2, 1, (2, 3, 1)),
        (3, 3, 1, (3, 1, 2)),
    ]
    replicas = [replica.id for group in (state.meta_group, *state.groups) for replica in group.replicas]
    assert len(set(replicas)) == len(replicas) == 12
    assert state.group_of_replica(replicas[-1]) == (state.groups[2], state.groups[2].replicas[-1])
    assert state.group_of_replica(99) is None
    group, epoch = state.owner_of_slot(SLOTS - 1)
    assert (group.id, epoch) == (3, 1)
    assert state.table.counts() == {1: 3_334, 2: 3_333, 3: 3_333}
    assert state.settings["cluster_name"] == "c"
    assert (state.replication, state.partition_interval_ms, state.level) == (3, 604_800_000, 1)
    assert state.auth.password_of("root") == "hash"
    assert state.group(META_GROUP) is state.meta_group
    assert state.ring.nodes == (1, 2, 3)


def test_fewer_nodes_than_replicas() -> None:
    meta = Meta()
    meta.entry(bootstrap(2)).unwrap()
    assert [group.nodes for group in meta.state.groups] == [(1, 2), (2, 1)]


def test_meta_learners_above_seven_nodes() -> None:
    meta = Meta()
    meta.entry(bootstrap(9)).unwrap()
    group = meta.state.meta_group
    assert group is not None
    assert len(group.voters) == META_VOTERS_MAX
    assert len(group.replicas) == 9


def test_bootstrap_happens_once(meta: Meta) -> None:
    before = meta.state.dump()
    assert meta.entry(bootstrap()).error is None
    result = meta.entry(bootstrap(cluster_name="other"))
    assert result.error is not None
    assert result.error.message == "the cluster c exists already"
    after = MetaState.load(meta.state.dump())
    assert after.settings["cluster_name"] == "c"
    assert MetaState.load(before).groups == after.groups


@pytest.mark.parametrize("changed", [{"replication": 0}, {"cluster_name": 3}, {"partition_interval_ms": None}])
def test_bootstrap_with_bad_settings(changed: dict[str, Any]) -> None:
    meta = Meta()
    assert meta.entry(bootstrap(**changed)).error is not None
    assert not meta.state.bootstrapped
    with pytest.raises(InvariantViolation):
        meta.state.owner_of_slot(0)


def test_registration_raises_the_level(meta: Meta) -> None:
    for node in (1, 2):
        assert meta.do(commands.register_node, node, 70 + node, 1, address(node), 2) == {"level": 1}
    assert meta.do(commands.register_node, 3, 73, 1, address(3), 3) == {"level": 2}
    assert meta.state.level == 2
    assert meta.do(commands.register_node, 1, 71, 2, address(1), 3) == {"level": 2}
    node = meta.state.node(1)
    assert node is not None
    assert (node.incarnation, node.start, node.level, node.registered) == (71, 2, 3, True)
    text = "the cluster is at level 2, the program of node 2 knows level 1"
    meta.refused(504, text, commands.register_node, 2, 72, 2, address(2), LEVEL)


def test_refused_registrations(meta: Meta) -> None:
    meta.do(commands.register_node, 1, 71, 5, address(1), 1)
    meta.refused(504, "node 4 is not a member of the cluster", commands.register_node, 4, 1, 1, address(4), 1)
    meta.refused(
        504,
        "node 1 is known with other data: an emptied disk comes back by replacing the node",
        commands.register_node, 1, 99, 6, address(1), 1,
    )  # fmt: skip
    meta.refused(504, "node 1 reports its start 4 after start 5", commands.register_node, 1, 71, 4, address(1), 1)
    meta.refused(504, "node 2 is at 127.0.0.1:9005 already", commands.register_node, 1, 71, 6, address(2), 1)
    moved = address(1)._replace(host="db1.example")
    meta.do(commands.register_node, 1, 71, 6, moved, 1)
    node = meta.state.node(1)
    assert node is not None
    assert node.address == moved
    assert meta.state.members_changed == meta.state.applied


# --- storage groups ---------------------------------------------------------------------------------------------------


def test_storage_groups(meta: Meta) -> None:
    ln = meta.do(commands.create_storage_group, "root.ln")["id"]
    assert ln == meta.state.applied
    meta.refused(300, "root.ln has already been set to storage group", commands.create_storage_group, "root.ln")
    meta.refused(300, "root.ln has already been set to storage group", commands.create_storage_group, "root.ln.wf01")
    meta.refused(315, "root is not a legal path", commands.create_storage_group, "root")
    wf = meta.do(commands.create_storage_group, "root.sgcc.wf")["id"]
    text = "some children of root.sgcc have already been set to storage group"
    meta.refused(300, text, commands.create_storage_group, "root.sgcc")
    meta.do(commands.create_storage_group, "root.sgcc.wf2")
    state = meta.state
    found = state.storage_group_of("root.sgcc.wf.d1.s1")
    assert found is not None
    assert (found.id, found.path, found.ttl_ms, found.dropping) == (wf, "root.sgcc.wf", None, False)
    for path in ("root.ln", "root.ln.d", 'root.ln."a.b".s'):
        at = state.storage_group_of(path)
        assert at is not None
        assert at.id == ln
    for path in ("root", "root.sgcc", "root.lnx.d", "root.sgcc.w"):
        assert state.storage_group_of(path) is None
    paths = [group.path for group in state.storage_groups()]
    assert paths == ["root.ln", "root.sgcc.wf", "root.sgcc.wf2"]
    assert [group.path for group in state.storage_groups(PathPattern.parse("root.sgcc"))] == paths[1:]
    assert [group.path for group in state.storage_groups(PathPattern.parse("root.*.wf"))] == paths[1:2]
    assert [group.path for group in state.storage_groups_touched(PathPattern.parse("root.*.wf.d1"))] == paths[:2]
    assert state.storage_group(wf) == found


def test_ttl(meta: Meta) -> None:
    for path in ("root.a.x", "root.a.y", "root.b"):
        meta.do(commands.create_storage_group, path)
    assert meta.do(commands.set_ttl, "root.a", 3_600_000) == {"paths": ["root.a.x", "root.a.y"]}
    assert meta.do(commands.set_ttl, "root.unknown", 1_000) == {"paths": []}
    assert [group.ttl_ms for group in meta.state.storage_groups()] == [3_600_000, 3_600_000, None]
    assert meta.state.storage_groups()[0].changed == meta.state.applied - 1
    meta.do(commands.unset_ttl, "root.a.x")
    assert [group.ttl_ms for group in meta.state.storage_groups()] == [None, 3_600_000, None]
    meta.refused(318, "TTL should not be negative: -1", commands.set_ttl, "root.a", -1)


def test_drop_takes_two_steps(meta: Meta) -> None:
    first = meta.do(commands.create_storage_group, "root.a.x")["id"]
    second = meta.do(commands.create_storage_group, "root.a.y")["id"]
    meta.do(commands.create_storage_group, "root.b")
    text = "Path [root.unknown root.c] does not exist"
    meta.refused(304, text, commands.drop_storage_groups, ["root.b", "root.unknown", "root.c"])
    assert len(meta.state.storage_groups()) == 3
    meta.refused(303, "the deletion of storage group root.a.x has not begun", commands.finish_drop, first)
    dropped = meta.do(commands.drop_storage_groups, ["root.a", "root.a.x"])
    assert dropped == {"ids": [first, second], "paths": ["root.a.x", "root.a.y"]}
    assert [group.path for group in meta.state.storage_groups()] == ["root.b"]
    assert len(meta.state.storage_groups(dropping=True)) == 3
    at = meta.state.storage_group_of("root.a.x.d")
    assert at is not None
    assert at.dropping
    for path in ("root.a", "root.a.x", "root.a.x.deeper"):
        text = "storage group root.a.x is being deleted, try again when it is gone"
        meta.refused(317, text, commands.create_storage_group, path)
    meta.do(commands.finish_drop, first)
    meta.do(commands.finish_drop, first)
    assert meta.state.storage_group_of("root.a.x.d") is None
    again = meta.do(commands.create_storage_group, "root.a.x")["id"]
    assert again > first
    # A second drop of one that is going joins the first.
    assert meta.do(commands.drop_storage_groups, ["root.a.y"])["ids"] == [second]


# --- users ------------------------------------------------------------------------------------------------------------


def test_users_and_roles(meta: Meta) -> None:
    meta.do(commands.create_user, "ln_user", "h1")
    meta.refused(411, "User ln_user already exists", commands.create_user, "ln_user", "h2")
    meta.do(commands.create_role, "reader")
    meta.do(commands.grant_role_privileges, "reader", [Privilege.READ_TIMESERIES], "root.au")
    meta.do(commands.grant_role_to_user, "reader", "ln_user")
    meta.do(commands.grant_user_privileges, "ln_user", [Privilege.INSERT_TIMESERIES], "root.au")
    auth = meta.state.auth
    assert auth.allowed("ln_user", Privilege.READ_TIMESERIES, "root.au.d")
    assert auth.allowed("ln_user", Privilege.INSERT_TIMESERIES, "root.au.d")
    meta.do(commands.revoke_user_privileges, "ln_user", [Privilege.INSERT_TIMESERIES], "root.au")
    meta.do(commands.revoke_role_privileges, "reader", [Privilege.READ_TIMESERIES], "root.au")
    assert auth.user_privileges("ln_user") == []
    meta.do(commands.alter_password, "ln_user", "h3")
    assert auth.password_of("ln_user") == "h3"
    meta.do(commands.revoke_role_from_user, "reader", "ln_user")
    meta.do(commands.drop_role, "reader")
    meta.do(commands.drop_user, "ln_user")
    assert auth.password_of("ln_user") is None


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_repeated_request_has_one_effect_and_one_answer(meta: Meta) -> None:
    request = RequestId(2, 1, 10, 8)
    payload = commands.create_storage_group(request, "root.a")
    first = meta.entry(payload)
    second = meta.entry(payload)
    assert second.duplicate
    assert second.value == first.value == {"id": 2}
    failing = commands.create_storage_group(RequestId(2, 1, 11, 8), "root.a")
    assert meta.entry(failing).error.code is Status.PATH_ALREADY_EXIST
    meta.do(commands.drop_storage_groups, ["root.a"])
    meta.do(commands.finish_drop, 2)
    late = meta.entry(failing)
    assert late.duplicate
    assert late.error.code is Status.PATH_ALREADY_EXIST
    assert meta.state.storage_group_of("root.a.d") is None


def test_late_requests_are_refused_without_effect(meta: Meta) -> None:
    meta.entry(commands.create_storage_group(RequestId(2, 3, 10, 8), "root.a")).unwrap()
    for request in (RequestId(2, 2, 11, 8), RequestId(2, 3, 7, 7)):
        result = meta.entry(commands.create_storage_group(request, "root.b"))
        assert isinstance(result.error, OutcomeUnknown)
    assert [group.path for group in meta.state.storage_groups()] == ["root.a"]


def test_outcomes_are_forgotten_with_low(meta: Meta) -> None:
    for sequence in range(1, 200):
        meta.entry(commands.set_ttl(RequestId(3, 1, sequence, max(1, sequence - 3)), "root.none", 1))
    small = len(meta.state.dump())
    for sequence in range(200, 2_000):
        meta.entry(commands.set_ttl(RequestId(3, 1, sequence, sequence - 3), "root.none", 1))
    assert len(meta.state.dump()) < small + 500  # 1,800 outcomes would take some 20,000


# --- robustness -------------------------------------------------------------------------------------------------------


def test_entries_come_in_order(meta: Meta) -> None:
    with pytest.raises(InvariantViolation):
        meta.state.apply(meta.state.applied, b"")
    assert meta.state.apply(meta.state.applied + 5, b"").value is None
    assert meta.state.applied == 6


@pytest.mark.parametrize("head", [{"v": 2, "kind": "bootstrap"}, {"v": 1, "kind": "unheard"}, [], {}])
def test_unknown_commands_stop_the_node(meta: Meta, head: Any) -> None:
    with pytest.raises(CorruptData):
        meta.entry(packing.pack(head))
    with pytest.raises(CorruptData):
        meta.entry(b"\x01")


@pytest.mark.parametrize(
    "payload",
    [
        commands.create_storage_group(RequestId(1, 1, 1, 1), 7),  # type: ignore[arg-type]
        commands.set_ttl(RequestId(1, 1, 1, 1), "root.a", "x"),  # type: ignore[arg-type]
        commands.set_ttl(RequestId(1, 1, 1, 1), "root..a", 1),
        commands.grant_user_privileges(RequestId(1, 1, 1, 1), "root", [12345], "root"),  # type: ignore[list-item]
        commands.register_node(RequestId(1, 1, 1, 1), 1, 1, 1, ("h", 1, 2), 1),  # type: ignore[arg-type]
        commands.drop_storage_groups(RequestId(1, 1, 1, 1), ["root.**"]),
    ],
)
def test_malformed_commands_are_answered(meta: Meta, payload: bytes) -> None:
    assert meta.entry(payload).error is not None


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_snapshots_are_refused(data: st.DataObject) -> None:
    meta = Meta()
    meta.entry(bootstrap())
    saved = meta.state.dump()
    at = data.draw(st.integers(0, len(saved) - 1))
    broken = bytearray(saved)
    broken[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptData):
        MetaState.load(broken)
    with pytest.raises(CorruptData):
        MetaState.load(saved[:at])


# --- determinism ------------------------------------------------------------------------------------------------------

PATHS = st.sampled_from(["root.a", "root.a.b", "root.a.c", "root.b", "root", "root.a b"])
NAMES = st.sampled_from(["user1", "user2", "ab"])
GRANTS = st.lists(st.sampled_from([Privilege.READ_TIMESERIES, Privilege.CREATE_USER, Privilege.ALL]), min_size=1)
STEPS = st.one_of(
    st.tuples(st.just(commands.create_storage_group), PATHS),
    st.tuples(st.just(commands.drop_storage_groups), st.lists(PATHS, max_size=2)),
    st.tuples(st.just(commands.finish_drop), st.integers(1, 30)),
    st.tuples(st.just(commands.set_ttl), PATHS, st.integers(-1, 5)),
    st.tuples(st.just(commands.unset_ttl), PATHS),
    st.tuples(st.just(commands.create_user), NAMES, st.just("h")),
    st.tuples(st.just(commands.drop_user), NAMES),
    st.tuples(st.just(commands.create_role), NAMES),
    st.tuples(st.just(commands.drop_role), NAMES),
    st.tuples(st.just(commands.grant_role_to_user), NAMES, NAMES),
    st.tuples(st.just(commands.grant_user_privileges), NAMES, GRANTS, PATHS),
    st.tuples(st.just(commands.grant_role_privileges), NAMES, GRANTS, PATHS),
    st.tuples(
        st.just(commands.register_node), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.builds(
            address, st.integers(1, 3)
        ), st.integers(1, 2),
    ),
)  # fmt: skip
REQUESTS = st.builds(
    lambda node, start, low, ahead: RequestId(node, start, low + ahead, low),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 10),
    st.integers(0, 5),
)


@given(st.lists(st.tuples(REQUESTS, STEPS), max_size=40), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_apply_is_deterministic_and_snapshots_are_whole(
    steps: list[tuple[RequestId, tuple[Any, ...]]], cut: int
) -> None:
    """One state applies everything; another is restored from a snapshot on the way. Same answers, same bytes."""
    left, right = MetaState(), MetaState()
    payloads = [bootstrap(), *(command(request, *fields) for request, (command, *fields) in steps)]
    for index, payload in enumerate(payloads, 1):
        before = left.dump()
        one, two = left.apply(index, payload), right.apply(index, payload)
        assert (one.value, repr(one.error), one.duplicate) == (two.value, repr(two.error), two.duplicate)
        if one.error is not None or one.duplicate:
            assert shown(left) == shown(MetaState.load(before))
        if index == cut:
            right = MetaState.load(left.dump())
        assert left.dump() == right.dump()


def shown(state: MetaState) -> tuple[Any, ...]:
    """What commands change, without the window."""
    return (state.nodes, state.groups, state.level, state.storage_groups(dropping=True), state.auth.dump())
