"""The first start of a founding node: who am I, do the seeds agree, is there a quorum of them (design section 6).

A founder's identifier is its place in the seed list, sorted as text `host:meta_port` as written, counted from 1. A
quorum of the seeds forms the cluster, the rest arrive later. After the first start the stored membership rules and
nothing here is asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.errors import CallerError, Status, SystemFault
from iotdb_cluster.world import World

__all__ = [
    "Founders",
    "OtherSettings",
    "Refused",
    "Removed",
    "Tale",
    "agree_with_seeds",
    "check_stored_settings",
    "differences",
    "identifiers",
    "seed_addresses",
]

logger = logging.getLogger(__name__)

ROUND_MS = 500  # between two rounds of asking
REPORT_MS = 3_000  # between two lines that say who is missing


class Refused(SystemFault):
    """The node must not start: the cluster, or another seed, says why. The command exits with code 3."""


class Removed(Refused):
    """The node is no member any more."""


class OtherSettings(SystemFault):
    """The data were made with settings that cannot be changed any more. The command exits with code 4."""


def check_stored_settings(settings: Settings, stored: Mapping[str, Any]) -> None:
    """Raise OtherSettings, naming each key with both values, where the cluster was founded with other ones."""
    names = {"partition_interval_ms": "partition_interval (here in ms)"}
    stored = {"slot_strategy": "hash", **stored}  # what clusters have that were founded before there was a choice
    unequal = [
        f"{names.get(key, key)} is {value!r} in the configuration and {stored[key]!r} in the cluster"
        for key, value in settings.fixed().items()
        if stored.get(key) != value and key != "replication"  # which nodetool changes
    ]
    if unequal:
        raise OtherSettings(f"{'; '.join(unequal)}: put the cluster's values back, they cannot be changed")


@dataclass(frozen=True, slots=True)
class Tale:
    """What a node tells another about itself: at the first start, and to whoever asks who it is."""

    name: str
    address: NodeAddress
    incarnation: int
    agreement: Mapping[str, Any]
    formed: bool  # it holds the membership of a cluster; programs of before `CURRENT_MEMBERS` ask for that
    incarnations: Mapping[str, int]  # by node name: those that the cluster has registered

    def dump(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address.dump(),
            "incarnation": self.incarnation,
            "agreement": dict(self.agreement),
            "formed": self.formed,
            "incarnations": dict(self.incarnations),
        }

    @classmethod
    def load(cls, value: Mapping[str, Any]) -> Tale:
        return cls(
            str(value["name"]),
            NodeAddress.load(value["address"]),
            int(value["incarnation"]),
            dict(value["agreement"]),
            bool(value["formed"]),
            {str(name): int(number) for name, number in value["incarnations"].items()},
        )


@dataclass(frozen=True, slots=True)
class Founders:
    """The outcome of the check: every seed by identifier, with the addresses learned from those that answered."""

    me: int
    addresses: Mapping[int, NodeAddress]
    incarnations: Mapping[int, int]


def identifiers(seeds: tuple[NodeAddress, ...]) -> dict[str, int]:
    """The identifier of each seed, by name."""
    return {name: place for place, name in enumerate(sorted({seed.name for seed in seeds}), 1)}


def seed_addresses(settings: Settings) -> dict[int, NodeAddress]:
    """The founders' addresses as the seed list has them."""
    places = identifiers(settings.seeds)
    return {places[seed.name]: seed for seed in settings.seeds if seed.data_port}


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One text for each key whose values differ, naming both."""
    keys = sorted({*mine, *theirs})
    return [
        f"{key} is {mine.get(key)!r} here and {theirs.get(key)!r} there"
        for key in keys
        if mine.get(key) != theirs.get(key)
    ]


async def agree_with_seeds(
    world: World,
    settings: Settings,
    incarnation: int,
    ask: Callable[[NodeAddress], Awaitable[Tale]],
) -> Founders:
    """Ask the other seeds until a quorum of all agrees; raises Refused, or SystemFault when the time is up."""
    places = identifiers(settings.seeds)
    me = places.get(settings.address.name)
    if me is None:
        raise Refused(
            f"this node is {settings.address.name}, which is not among the seed nodes {sorted(places)}: "
            "write the address as it stands there; to add a node to a running cluster start it with add-node.sh"
        )
    if len(places) < settings.replication // 2 + 1:
        raise Refused(
            f"{len(places)} seed nodes cannot hold a majority of default_replica_num={settings.replication} replicas"
        )
    others = {seed.name: seed for seed in settings.seeds if seed.name != settings.address.name}
    quorum = len(places) // 2 + 1
    deadline_ms = world.clock.monotonic_ms() + settings.start_timeout_ms
    reported_ms = world.clock.monotonic_ms()
    while True:
        answers = await _ask_all(others, ask)
        for tale in answers.values():
            _compare(settings, incarnation, tale)
        if len(answers) + 1 >= quorum:
            missing = sorted(set(others) - set(answers))
            if missing:
                logger.warning("starting without %s: a quorum of the seed nodes is here", ", ".join(missing))
            return _founders(settings, places, me, incarnation, answers)
        now_ms = world.clock.monotonic_ms()
        missing = sorted(set(others) - set(answers))
        if now_ms >= deadline_ms:
            raise SystemFault(
                f"no quorum of the seed nodes within {settings.start_timeout_ms // 1000} s: nothing heard from "
                f"{', '.join(missing)}; look at the network and at these nodes' logs"
            )
        if now_ms - reported_ms >= REPORT_MS:
            reported_ms = now_ms
            logger.info(
                "waiting for a quorum of the seed nodes (%d of %d are here); missing: %s",
                len(answers) + 1,
                len(places),
                ", ".join(missing),
            )
        await asyncio.sleep(ROUND_MS / 1000)


async def _ask_all(others: Mapping[str, NodeAddress], ask: Callable[[NodeAddress], Awaitable[Tale]]) -> dict[str, Tale]:
    results = await asyncio.gather(*(ask(address) for address in others.values()), return_exceptions=True)
    answers: dict[str, Tale] = {}
    for name, result in zip(others, results, strict=True):
        if isinstance(result, Tale):
            answers[name] = result
        elif isinstance(result, CallerError):
            if result.code not in (Status.NO_CONNECTION, Status.TIME_OUT):
                raise Refused(f"{name} answers {result.message}")
        else:
            raise result
    return answers


def _compare(settings: Settings, incarnation: int, tale: Tale) -> None:
    unequal = differences(settings.agreement(), tale.agreement)
    if unequal:
        raise Refused(f"the settings differ from those of {tale.name}: {'; '.join(unequal)}")
    known = tale.incarnations.get(settings.address.name)
    if known is not None and known != incarnation:
        raise Refused(
            f"{tale.name} knows this node as a member that had data; its disks are empty now. "
            "Give it back its data directories: it must not start without them. If they are lost, this node can take "
            "the place of the dead one: add-node.sh --replace NODE, the identifier that nodetool.sh ring shows"
        )


def _founders(
    settings: Settings, places: Mapping[str, int], me: int, incarnation: int, answers: Mapping[str, Tale]
) -> Founders:
    addresses = {places[seed.name]: seed for seed in settings.seeds}
    incarnations = {me: incarnation}
    addresses[me] = settings.address
    for name, tale in answers.items():
        addresses[places[name]] = tale.address
        incarnations[places[name]] = tale.incarnation
    return Founders(me, addresses, incarnations)
