"""A node that joins a running cluster: it asks the seeds in turn, and writes down what it was told.

The system directory of a node that has joined holds `joined`: u32 CRC32C, then, packed, the identifier, the founders of
the meta group, and the members' addresses. With it the node opens its replica of the meta group, and is reached and
reaches others, before that replica tells more. It is written before the identifier: a crash between is a join that is
asked for again, with the same incarnation, and so with the same answer.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crc32c import crc32c

from iotdb_cluster.cluster.log import Identity, replace_file, set_identifier
from iotdb_cluster.cluster.peers import NodePeers
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import (
    REPORT_MS,
    OtherSettings,
    Refused,
    Tale,
    agree_with_seeds,
    seed_addresses,
)
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault
from iotdb_cluster.meta import LEVEL
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.world import FileSystem, World

__all__ = [
    "JOIN_CALL",
    "MEMBER_CALL",
    "Entry",
    "Joined",
    "ask_to_join",
    "check_still_member",
    "enter",
    "read_joined",
    "warn_of_loss",
    "write_joined",
]

logger = logging.getLogger(__name__)

JOIN_CALL, MEMBER_CALL = "join", "is member"
CURRENT_MEMBERS = pack({"node": 0, "current": True})  # the members by all that the meta group has decided by now
ASK_TIMEOUT_MS = 5_000  # of one question to a seed at the first start
JOIN_TIMEOUT_MS = 10_000  # of one wish to be admitted, which the meta group decides
ROUND_MS = 1_000  # between two rounds of asking
_FILE = "joined"


@dataclass(frozen=True, slots=True)
class Joined:
    """What a node was told when it was admitted: who it is, how the meta group began, and where the members are."""

    node: int
    founders: tuple[int, ...]
    addresses: Mapping[int, NodeAddress]

    @classmethod
    def load(cls, value: Mapping[str, Any]) -> Joined:
        """The value of the meta command `join_node`."""
        addresses = {int(number): NodeAddress.load(address) for number, *address in value["nodes"]}
        return cls(int(value["node"]), tuple(int(one) for one in value["founders"]), addresses)

    def dump(self) -> dict[str, Any]:
        nodes = [[number, *address.dump()] for number, address in sorted(self.addresses.items())]
        return {"node": self.node, "founders": list(self.founders), "nodes": nodes}


@dataclass(frozen=True, slots=True)
class Entry:
    """How a node begins this start: who it is, whom it knows, how the meta group began (empty: with the seeds)."""

    identity: Identity
    addresses: Mapping[int, NodeAddress]
    incarnations: Mapping[int, int]
    founders: tuple[int, ...]


async def enter(world: World, settings: Settings, identity: Identity, peers: NodePeers) -> Entry:
    """Found a cluster with the seeds, join theirs, or be again who one was. Raises as the functions that do it."""

    async def ask_tale(address: NodeAddress) -> Tale:
        head, _ = unpack(await peers.call_stranger(address, "tale", pack(None), ASK_TIMEOUT_MS))
        return Tale.load(head)

    async def ask(address: NodeAddress, request: bytes) -> Mapping[str, Any]:
        head, _ = unpack(await peers.call_stranger(address, JOIN_CALL, request, JOIN_TIMEOUT_MS))
        return dict(head)

    async def ask_members(address: NodeAddress) -> Mapping[str, Any]:
        head, _ = unpack(await peers.call_stranger(address, MEMBER_CALL, CURRENT_MEMBERS, ASK_TIMEOUT_MS))
        return dict(head)

    joined = read_joined(world.files, settings.system_path)
    if identity.identifier:
        await check_no_copy(settings, identity, joined, ask_tale)
        if settings.joins:
            await check_still_member(settings, identity, ask_members)
        if joined is None:
            return Entry(identity, {}, {}, ())
        return Entry(identity, joined.addresses, {}, joined.founders)
    if settings.joins or joined is not None:
        joined = await ask_to_join(world, settings, identity, ask)
        write_joined(world.files, settings.system_path, joined)
        identity = set_identifier(world.files, settings.wal_path, identity, joined.node)
        return Entry(identity, joined.addresses, {}, joined.founders)
    founders = await agree_with_seeds(world, settings, identity.incarnation, ask_tale)
    identity = set_identifier(world.files, settings.wal_path, identity, founders.me)
    return Entry(identity, founders.addresses, founders.incarnations, ())


async def check_no_copy(
    settings: Settings,
    identity: Identity,
    joined: Joined | None,
    ask: Callable[[NodeAddress], Awaitable[Tale]],
) -> None:
    """Raise Refused where this node has another address than at its first start, and is still there too: a copy."""
    places = seed_addresses(settings) if joined is None else joined.addresses
    first = places.get(identity.identifier)
    if first is None or first.name == settings.address.name:
        return
    try:
        tale = await ask(first)
    except CallerError:
        return  # it has moved
    if tale.incarnation == identity.incarnation:
        raise Refused(
            f"these directories are a copy of those of node {identity.identifier}, which runs at {first.name}: start "
            "with empty ones to join its cluster"
        )


def write_joined(files: FileSystem, directory: str, joined: Joined) -> None:
    """Durable when it returns. OSError."""
    body = pack(joined.dump())
    replace_file(files, posixpath.join(directory, _FILE), crc32c(body).to_bytes(4, "big") + body)


def read_joined(files: FileSystem, directory: str) -> Joined | None:
    """None where the node did not join, but founded. Raises CorruptData, OSError."""
    path = posixpath.join(directory, _FILE)
    if not files.exists(path):
        return None
    file = files.open(path)
    try:
        data = file.read(0, file.size())
    finally:
        file.close()
    if len(data) < 4 or int.from_bytes(data[:4], "big") != crc32c(data[4:]):
        raise CorruptData(f"{path} offset 0: wrong checksum")
    head, _ = unpack(data[4:])
    return Joined.load(head)


async def ask_to_join(
    world: World,
    settings: Settings,
    identity: Identity,
    ask: Callable[[NodeAddress, bytes], Awaitable[Mapping[str, Any]]],
) -> Joined:
    """Ask the seeds in turn until one's cluster has admitted this node.

    Raises Refused with the cluster's reason, also where another change was under way until the time was up; SystemFault
    where no seed answered in time.
    """
    seeds = [seed for seed in settings.seeds if seed.name != settings.address.name]
    request = pack(
        {
            "address": settings.address.dump(),
            "incarnation": identity.incarnation,
            "start": identity.start_number,
            "level": LEVEL,
            "settings": settings.agreement(),
            "replaces": settings.replaces,
            "accept_loss": settings.accept_loss,
        }
    )
    began_ms = reported_ms = world.clock.monotonic_ms()
    while True:
        busy, failures = "", []
        for seed in seeds:
            try:
                answer = await ask(seed, request)
            except CallerError as error:
                if error.code == Status.START_UP_ERROR:
                    raise Refused(f"{seed.name} does not admit this node: {error.message}") from None
                failures.append(f"{seed.name}: {error.message}")
                continue
            if "busy" in answer:
                busy = f"{seed.name}: {answer['busy']}"
                break
            joined = Joined.load(answer)
            logger.info("%s has admitted this node: it is node %d of %d", seed.name, joined.node, len(joined.addresses))
            warn_of_loss(settings.replaces, answer)
            return joined
        why, now_ms = busy or "; ".join(failures), world.clock.monotonic_ms()
        if now_ms - began_ms >= settings.start_timeout_ms:
            seconds = settings.start_timeout_ms // 1000
            if busy:
                raise Refused(f"not admitted within {seconds} s: {busy}")
            raise SystemFault(f"no seed node has admitted this node within {seconds} s: {why}")
        if now_ms - reported_ms >= REPORT_MS or now_ms == reported_ms == began_ms:
            reported_ms = now_ms
            logger.info("not admitted yet, asking again: %s", why)
        await asyncio.sleep(ROUND_MS / 1000)


def warn_of_loss(node: int, value: Mapping[str, Any]) -> None:
    """An operator reads what went with a dead node; `value`: that of the meta command `join_node` or `leave_node`."""
    if value.get("lost"):
        logger.warning(
            "%d slots of which the dead node %d had the only copy begin anew, empty, as was accepted; storage groups "
            "that are dropped with them: %s", value["lost"], node, ", ".join(value["dropped"]) or "none",
        )  # fmt: skip


async def check_still_member(
    settings: Settings, identity: Identity, ask: Callable[[NodeAddress], Awaitable[Mapping[str, Any]]]
) -> None:
    """A node that has an identifier is told to join: fine where the seeds' cluster is the one that it is in already.

    `ask` gives a seed's answer to `CURRENT_MEMBERS`. Raises OtherSettings where a seed's cluster does not know this
    node. Where no seed can say what its meta group has decided by now, the stored membership rules.
    """
    for seed in settings.seeds:
        if seed.name == settings.address.name:
            continue
        try:
            answer = await ask(seed)
        except CallerError as error:
            logger.info("%s was not asked whether this node is a member: %s", seed.name, error.message)
            continue
        if not answer.get("current"):  # an earlier release: it may not have heard of this node yet
            continue
        if identity.incarnation not in [incarnation for _, incarnation, *_ in answer["nodes"]]:
            raise OtherSettings(
                f"these directories are those of node {identity.identifier} of another cluster, or of one that was "
                f"removed: the cluster of {seed.name} has no such member. To join it, start with empty directories"
            )
        logger.info("this node is a member already: it starts as node %d", identity.identifier)
        return
