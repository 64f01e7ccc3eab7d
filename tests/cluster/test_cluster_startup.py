"""The first start: who may form a cluster, with whom, and what is said otherwise."""

import random
from collections.abc import Callable

import pytest

from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import (
    OtherSettings,
    Refused,
    Tale,
    agree_with_seeds,
    check_stored_settings,
    identifiers,
)
from iotdb_cluster.errors import CallerError, Status, SystemFault
from iotdb_cluster.world import World

SEEDS = tuple(NodeAddress("127.0.0.1", 9003 + 2 * i, 40010 + 2 * i, 55560 + i) for i in range(3))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic_ms(self) -> float:
        self.now += 100
        return self.now

    def wall_ms(self) -> int:
        return int(self.now)


def settings(place: int, **changes: object) -> Settings:
    values: dict = {"address": SEEDS[place], "seeds": SEEDS, "directory": "/d", "start_timeout_ms": 2_000, **changes}
    return Settings(**values)


def tale(of: Settings, **changes: object) -> Tale:
    values: dict = {
        "name": of.address.name,
        "address": of.address,
        "incarnation": 7,
        "agreement": of.agreement(),
        "formed": False,
        "incarnations": {},
        **changes,
    }
    return Tale(**values)


def world() -> World:
    return World(Clock(), random.Random(1), None, None, None)  # type: ignore[arg-type]


def answering(answers: dict[str, Tale]) -> Callable:
    async def ask(address: NodeAddress) -> Tale:
        if address.name not in answers:
            raise CallerError(Status.NO_CONNECTION, f"{address.name} is down")
        return answers[address.name]

    return ask


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.cluster.startup.ROUND_MS", 0)


def test_identifiers_are_places_in_the_sorted_list() -> None:
    assert identifiers(SEEDS) == {"127.0.0.1:9003": 1, "127.0.0.1:9005": 2, "127.0.0.1:9007": 3}


async def test_a_quorum_forms_and_the_rest_arrive_later() -> None:
    founders = await agree_with_seeds(world(), settings(0), 5, answering({"127.0.0.1:9007": tale(settings(2))}))
    assert founders.me == 1
    assert founders.incarnations == {1: 5, 3: 7}
    assert founders.addresses[2] == SEEDS[1]


async def test_nobody_there_is_a_system_fault_that_names_the_missing() -> None:
    with pytest.raises(SystemFault, match=r"127\.0\.0\.1:9005, 127\.0\.0\.1:9007") as failed:
        await agree_with_seeds(world(), settings(0), 5, answering({}))
    assert not isinstance(failed.value, Refused)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cluster_name": "other"}, "cluster_name is 'default' here and 'other' there"),
        ({"replication": 2}, "default_replica_num is 3 here and 2 there"),
        ({"partition_interval_ms": 1_000}, "partition_interval is 604800 here and 1 there"),
        ({"seeds": SEEDS[:2]}, "seed_nodes is"),
    ],
)
async def test_each_mismatch_is_named_with_both_values(changes: dict, named: str) -> None:
    other = tale(settings(1, **changes))
    with pytest.raises(Refused) as refused:
        await agree_with_seeds(world(), settings(0), 5, answering({other.name: other}))
    assert named in str(refused.value)


async def test_an_empty_disk_does_not_start_as_a_member_that_had_data() -> None:
    formed = tale(settings(1), formed=True, incarnations={"127.0.0.1:9003": 99})
    with pytest.raises(Refused, match="replace"):
        await agree_with_seeds(world(), settings(0), 5, answering({formed.name: formed}))


async def test_a_founder_that_comes_late_joins_the_formed_cluster() -> None:
    formed = tale(settings(1), formed=True, incarnations={"127.0.0.1:9005": 7})
    founders = await agree_with_seeds(world(), settings(0), 5, answering({formed.name: formed}))
    assert founders.me == 1


async def test_not_a_seed() -> None:
    stranger = settings(0, address=NodeAddress("10.0.0.9", 9003, 40010, 55560))
    with pytest.raises(Refused, match="not among the seed nodes"):
        await agree_with_seeds(world(), stranger, 5, answering({}))


async def test_too_few_seeds_for_the_replicas() -> None:
    few = settings(0, seeds=SEEDS[:1], replication=3)
    with pytest.raises(Refused, match="majority"):
        await agree_with_seeds(world(), few, 5, answering({}))


def test_a_tale_survives_the_wire() -> None:
    told = tale(settings(1), incarnations={"a:1": 3})
    assert Tale.load(told.dump()) == told


def test_settings_that_cannot_change_are_compared_with_the_clusters() -> None:
    stored = {
        "cluster_name": "default",
        "replication": 3,
        "partition_interval_ms": 604_800_000,
        "timestamp_precision": "ms",
    }
    check_stored_settings(settings(0), stored)
    check_stored_settings(settings(0, replication=2), stored)  # the cluster's counts: it is changed by nodetool
    for changes, named in (
        ({"partition_interval_ms": 1_000}, "partition_interval"),
        ({"cluster_name": "other"}, "cluster_name is 'other' in the configuration and 'default' in the cluster"),
        ({"timestamp_precision": "us"}, "timestamp_precision"),
        ({"slot_strategy": "round_robin"}, "slot_strategy is 'round_robin' in the configuration and 'hash' in the"),
    ):
        with pytest.raises(OtherSettings, match=named.replace("(", r"\(")):
            check_stored_settings(settings(0, **changes), stored)
