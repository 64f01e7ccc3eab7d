"""A whole node: its rooms put together, started, and stopped.

The order of a start: lock and identity, ports for peers, the first start's check (once in a node's life), the durable
log, the meta group, then whatever groups meta says that this node has replicas of, then the port for clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from iotdb_cluster.cluster.accounts import Accounts
from iotdb_cluster.cluster.activity import Activity, first_query_id
from iotdb_cluster.cluster.admin import AdminConnection
from iotdb_cluster.cluster.administration import Administration
from iotdb_cluster.cluster.archive import Archive
from iotdb_cluster.cluster.backup import BACKUP_CALLS, Backup
from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.catalog import Catalog
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.compaction import MERGE_CALL, Compaction
from iotdb_cluster.cluster.conductor import HELD_CALL, Conductor
from iotdb_cluster.cluster.configuration import Loaded
from iotdb_cluster.cluster.contents import CONTENT_CALL, Contents
from iotdb_cluster.cluster.data_group import DataMachine, Machines
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.duties import Duties
from iotdb_cluster.cluster.everywhere import CLEAR_CACHE_CALL, Everywhere
from iotdb_cluster.cluster.expiry import Expiry
from iotdb_cluster.cluster.forcing import LOG_END_CALL, Forcing
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.housekeeping import FLUSH_CALL, Housekeeping
from iotdb_cluster.cluster.joining import enter
from iotdb_cluster.cluster.leadership import Leadership
from iotdb_cluster.cluster.log import (
    DurableLog,
    Identity,
    LogOptions,
    make_durable_directories,
    open_identity,
)
from iotdb_cluster.cluster.marks import MARKS_CALL, Marks
from iotdb_cluster.cluster.members import MEMBER_CALLS, Members
from iotdb_cluster.cluster.membership import Membership, taken_over, tale_of
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.meta_forcing import META_FORCE_CALLS, MetaForcing
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.migration import MIGRATION_CALLS, Migration
from iotdb_cluster.cluster.outbox import PeerOutbox
from iotdb_cluster.cluster.overview import SNAPSHOTS_CALL, Overview
from iotdb_cluster.cluster.peers import NodePeers, PeerPorts
from iotdb_cluster.cluster.points import PointServing
from iotdb_cluster.cluster.privileges import Privileges
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.queries import Queries
from iotdb_cluster.cluster.reloading import Reloading
from iotdb_cluster.cluster.replicas import TICK_PART, Replicas
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.cluster.restore import Restore
from iotdb_cluster.cluster.room import DiskSpace, RoomGuard
from iotdb_cluster.cluster.schema_reads import SchemaServing
from iotdb_cluster.cluster.service import VERSION, ClientNode
from iotdb_cluster.cluster.serving import WriteServing
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.shaping import CONFIGURED_CALL, Shaping, leaves
from iotdb_cluster.cluster.snapshots import SNAPSHOT_CALLS, SnapshotReceiver, SnapshotSender
from iotdb_cluster.cluster.startup import OtherSettings, check_stored_settings, seed_addresses
from iotdb_cluster.cluster.statement_reads import ReadServices
from iotdb_cluster.cluster.statements import Statements
from iotdb_cluster.cluster.texts import TextConverter
from iotdb_cluster.cluster.writes import Writer
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import Role
from iotdb_cluster.packing import pack
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.rpc.service import ClientService
from iotdb_cluster.sql import warm_up
from iotdb_cluster.world import World

__all__ = ["Node"]

logger = logging.getLogger(__name__)

HANDLERS = (
    *("propose", "propose together", "resolve", "retired"),
    *("schema", "points", "scan open", "scan pull", "scan close"),
    *MIGRATION_CALLS,
    *(MARKS_CALL, FLUSH_CALL, MERGE_CALL, CLEAR_CACHE_CALL, "state", "digest", SNAPSHOTS_CALL),
    *("configuration", "activity", "kill query", "tracing", "schema snapshot", "meta applied"),
    *SNAPSHOT_CALLS,
    *(CONTENT_CALL, *BACKUP_CALLS, CONFIGURED_CALL, LOG_END_CALL, *META_FORCE_CALLS, HELD_CALL, *MEMBER_CALLS),
)


class Node:
    """One node. `run` ends when `request_stop` is called, or with the failure that stopped it."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        facts: Mapping[str, Any] | None = None,
        read_configuration: Callable[[], Loaded] | None = None,
    ) -> None:
        """`facts` are told with the node's health: what its process knows of itself.

        `read_configuration` reads the property files again (on a worker); without it there is nothing to reload.
        """
        self._facts = dict(facts or {})
        self._world = world
        self._settings = replace(settings)  # its own: LOAD CONFIGURATION changes it
        self._read_configuration = read_configuration or (lambda: Loaded(settings, ()))
        self._client: ClientService | None = None
        self._stop: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[Any]] = []  # that go on; the first one writes the log
        self._machines: dict[int, DataMachine] = Machines()
        self._addresses: dict[int, NodeAddress] = {}
        self._incarnations: dict[int, int] = {}
        self._identity: Identity | None = None
        self._endings = AsyncExitStack()  # what was started ends in the opposite order
        self._built = False
        self.serving = False

    def figures(self) -> dict[str, float]:
        """What is worth scraping, by name; from any thread."""
        if not self.serving:
            return {"up": 0.0}
        return {
            "up": 1.0,
            "memtable_bytes": float(self._housekeeping.memory_bytes()),
            "log_pinned_bytes": float(self._log.bytes_pinned()),
            "open_cursors": float(self._points.open_cursors),
            "requests_open": float(self._requests.open),
            "groups": float(len(self._driver.groups)),
            "groups_led": float(sum(group.leads for group in list(self._driver.groups.values()))),
            "storage_groups": float(len(self._meta_machine.state.storage_groups())),
        }

    def leading(self) -> list[tuple[int, int]]:
        """(group, term) of every group that this node leads."""
        if not self._built:
            return []
        return [(group.id, group.raw.term) for group in self._driver.groups.values() if group.leads]

    def replicas(self) -> list[Group]:
        """Every replica that runs here."""
        return list(self._driver.groups.values()) if self._built else []

    # --- life ---------------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Stop cleanly."""
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    def _fault(self, error: BaseException) -> None:
        """Stop because of a failure: of the disk, or our bug."""
        if self._stop is not None and not self._stop.done():
            self._stop.set_exception(error)

    async def run(self, on_serving: Callable[[], None] = lambda: None) -> None:
        """Start, serve, stop. Raises what ended it: SystemFault, Refused, CorruptData, OSError, InvariantViolation."""
        self._stop = asyncio.get_running_loop().create_future()
        start = asyncio.get_running_loop().create_task(self._start(on_serving))
        try:
            await asyncio.wait([start, self._stop], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            await self._stop
        finally:
            self.serving = False
            start.cancel()
            await asyncio.wait([start])
            await self._endings.aclose()

    async def _start(self, on_serving: Callable[[], None]) -> None:
        self._take_directories()
        settings, world = self._settings, self._world
        identity = open_identity(world.files, settings.wal_path, settings.data_paths, world.random)
        self._incarnation = identity.incarnation
        self._peers = NodePeers(world, self._greeting(identity), self._addresses.get, settings.connection_timeout_ms)
        self._endings.push_async_callback(self._peers.close)
        self._calls = Calls(0, self._peers)
        self._calls.handlers["tale"] = self._tell_tale
        self._register_later()
        self._ports = PeerPorts(world, self._calls.handlers, self.receive_raft, self._admit, self._fault)
        self._endings.push_async_callback(self._ports.close)
        await self._ports.start(settings.listen_host or settings.address.host, settings.address)
        entry = await enter(world, settings, identity, self._peers)
        self._addresses.update(entry.addresses)
        self._incarnations.update(entry.incarnations)
        identity = self._identity = entry.identity
        self._peers.identify(self._greeting(identity))
        self._calls.node = identity.identifier
        self._addresses.setdefault(identity.identifier, settings.address)
        if len(self._addresses) == 1:  # no check told others: until meta does, the seed list has to
            self._addresses.update({**seed_addresses(settings), identity.identifier: settings.address})
        await self._build(identity, entry.founders)
        await self._world.workers.run(warm_up)  # the first statement would hold up the loop
        await self._until_serving()
        on_serving()

    def _take_directories(self) -> None:
        files = self._world.files
        for path in (self._settings.system_path, self._settings.wal_path, *self._settings.data_paths):
            make_durable_directories(files, path)
        try:
            lock = files.lock(f"{self._settings.system_path}/lock")
            self._endings.callback(lock.close)
        except BlockingIOError:
            raise BlockingIOError(f"{self._settings.system_path} is used by another process") from None

    def _greeting(self, identity: Identity) -> PeerIdentity:
        incarnation = identity.incarnation.to_bytes(8, "big")
        cluster = self._settings.cluster_name if identity.identifier else ""  # a stranger hears how settings differ
        return PeerIdentity(identity.identifier, incarnation, "", cluster, identity.start_number)

    # --- putting the rooms together -----------------------------------------------------------------------------------

    def _register_later(self) -> None:
        """Names of the handlers that are put in place once the rooms stand; until then they answer 700."""

        async def not_yet(body: memoryview, deadline: Deadline) -> bytes:
            del body, deadline
            raise CallerError(Status.PARTITION_NOT_READY, "the node is starting: try again")

        for name in HANDLERS:
            self._calls.handlers.setdefault(name, not_yet)

    async def _build(self, identity: Identity, founders: tuple[int, ...]) -> None:
        world, settings = self._world, self._settings
        options = LogOptions(
            segment_bytes=settings.log_segment_bytes,
            cache_bytes_max=settings.log_cache_bytes,
            cache_entries_max=settings.log_memory_entries,
            accept_loss=settings.accept_loss,
        )
        self._log = DurableLog.open(
            world.files, settings.wal_path, world.random, options, workers=world.workers, on_fault=self._fault
        )
        self._spawn(self._log.run())
        self._endings.push_async_callback(self._end_tasks)
        outbox = PeerOutbox(identity.identifier, identity.incarnation, self._peers.send_raft)
        tick_ms = settings.heartbeat_interval_ms / TICK_PART
        self._driver = Driver(world, self._log, outbox, identity.identifier, tick_ms, self._fault)
        self._peers.gone = self._driver.gone
        self._leaders = Leaders(world, self._leader_here, self._members)
        self._requests = RequestIds(identity.identifier, identity.start_number)
        self._proposals = Proposals(self._calls, self._leaders, self._requests)
        self._meta_machine = MetaMachine(world.files, f"{settings.system_path}/meta", self._meta_applied)
        self._replicas = Replicas(
            world,
            settings,
            self._log,
            self._driver,
            self._machines,
            self._incarnations,
            self._wake_duties,
            self._leaders.changed,
            self._spawn,
        )
        meta_group = await self._replicas.open_meta(identity.identifier, self._meta_machine, founders)
        self._meta = MetaAccess(
            self._driver, meta_group, self._meta_machine, self._calls, self._leaders, self._requests
        )
        self._catalog = Catalog(self._meta, self._calls, self._leaders, settings)
        self._endings.callback(self._driver.stop)
        self._points = PointServing(world, self._driver, self._machines, settings)
        self._endings.callback(self._points.close)
        disk = DiskSpace(world, settings, lambda: self._log.lacks_spares)
        receiver, guard = self._build_care(disk, identity.identifier)
        WriteServing(self._driver, self._machines, self._proposals, guard).register(self._calls)
        SchemaServing(world, self._driver, self._machines, settings).register(self._calls)
        self._points.register(self._calls)
        self._housekeeping.register(self._calls)
        membership = Membership(world, settings, identity, self._meta, self._addresses)
        self._shaping = Shaping(world, self._driver, self._log, self._meta, self._calls)
        self._shaping.register(self._calls)
        self._duties = Duties(world, self._driver, self._meta, self._proposals, self._machines, membership)
        self._conductor = Conductor(
            world, self._driver, self._meta, self._machines, self._calls, self._leaders, self._proposals, self._peers
        )
        self._conductor.register(self._calls)
        self._handler = self._client_node()
        operators = self._serve_operators()
        self._built = True
        await self._listen_admin()
        self._driver.start()
        self._meta_changed()
        expiry = Expiry(world, self._driver, self._meta, self._requests, self._machines, self._marks)
        keepers = (self._duties, self._housekeeping, self._marks, self._compaction, self._leadership, expiry)
        for room in (*keepers, *self._migration.rooms, self._shaping, self._conductor, *operators):
            self._spawn(room.run())
        self._spawn(receiver.sweep_forever())
        self._spawn(self._peers.sweep_forever(self._addresses.values))

    def _build_care(self, disk: DiskSpace, node: int) -> tuple[SnapshotReceiver, RoomGuard]:
        """What keeps house: checkpoints, the marks that nodes tell each other, snapshots."""
        world, settings = self._world, self._settings
        self._housekeeping = Housekeeping(
            world, settings, self._driver, self._log, self._meta_machine, self._machines, self._points
        )
        self._marks = Marks(
            world,
            self._calls,
            lambda: self._members(0),
            lambda: disk.free_bytes,
            lambda: [group.id for group in self._driver.groups.values() if not group.behind],
            self._housekeeping.water_for,
            self._housekeeping.take_water,
            self._fault,
        )
        self._marks.register(self._calls)
        self._migration = Migration(
            world,
            settings,
            self._driver,
            self._machines,
            self._meta,
            self._calls,
            self._leaders,
            self._proposals,
            self._housekeeping,
            self._spawn,
            self._fault,
        )
        self._endings.push_async_callback(self._migration.close)
        self._compaction = Compaction(
            world,
            settings,
            self._machines,
            self._housekeeping.checkpoint,
            self._housekeeping.collect,
            lambda number: self._meta_machine.state.storage_group(number),
        )
        self._compaction.register(self._calls)
        self._calls.handlers[CLEAR_CACHE_CALL] = self._clear_caches
        sender = self._sender = SnapshotSender(
            world, self._driver, self._calls, self._housekeeping.take, self._fault, settings
        )
        receiver = SnapshotReceiver(world, self._driver, self._machines, settings.disk_free_min_bytes)
        receiver.register(self._calls)
        self._endings.push_async_callback(sender.close)
        guard = RoomGuard(settings, self._housekeeping.memory_bytes, node, self._marks.facts)
        forcing = Forcing(world, self._log, self._calls, self._housekeeping.checkpoint)
        forcing.register(self._calls)
        self._replicas.connect(sender, receiver, guard, forcing)
        self._replicas.at_the_end(
            lambda number: self._points.end_group(number, "its data moved to other nodes"),
            sender.forget,
            receiver.forget,
            self._housekeeping.forget,
        )
        self._leadership = Leadership(world, self._driver, node, guard.lacks_room, self._marks.has_applied, self._goes)
        return receiver, guard

    def _goes(self, number: int, replica: int) -> bool:
        return leaves(self._meta_machine.state, number, replica)

    def _client_node(self) -> ClientNode:
        world, settings = self._world, self._settings
        services = ReadServices(
            world,
            self._meta,
            self._catalog,
            self._calls,
            self._leaders,
            settings,
            lambda deadline: activity.queries(deadline),
            lambda deadline: activity.flush_tasks(deadline),
            self._compaction.tasks,
        )
        queries = Queries(world, services, VERSION)
        activity = Activity(self._meta, self._calls, queries.running, queries.kill, self._housekeeping.flush_tasks)
        reloading = Reloading(world, settings, self._read_configuration, self._meta, self._calls, self._configured)
        administration = Administration(
            self._meta, self._calls, queries, activity, reloading, self._housekeeping.snapshot_schema
        )
        for room in (self._meta, activity, reloading, administration):
            room.register(self._calls)
        writer = self._writer = Writer(self._catalog, self._proposals, settings, world.workers)
        texts = TextConverter(self._catalog, settings)
        changes = Changes(self._meta, self._catalog, self._proposals, self._calls, self._leaders, settings)
        privileges = Privileges(self._meta)
        accounts = Accounts(world, self._meta)
        statements = Statements(
            world,
            settings,
            self._meta,
            writer,
            texts,
            changes,
            queries,
            Everywhere(self._meta, self._calls),
            privileges,
            accounts,
            administration,
        )
        return ClientNode(world, settings, self._meta, writer, texts, changes, queries, statements, privileges)

    def _serve_operators(self) -> tuple[Members, MetaForcing]:
        """What the nodetool port answers; the rooms that run for it."""
        self._overview = Overview(
            self._world,
            self._settings,
            self._driver,
            self._meta,
            self._machines,
            self._calls,
            lambda: self.serving,
            self._facts,
            self._sender.progress,
            self._shaping.waiting,
        )
        moves, machine, world = self._migration.moving.everywhere, self._meta_machine, self._world
        rooms = (self._meta, self._calls, self._peers, self._addresses, self._leaders)
        members = Members(world, self._settings, *rooms, self._conductor, moves, self._fault)
        archive = self._archive()
        forcing = MetaForcing(world, self._log, self._replicas, machine, self._calls, self._addresses, self._spawn)
        for one in (self._overview, members, archive, forcing):
            one.register(self._calls)
        self._overview.extend({**members.commands, **forcing.commands, **archive.commands})
        self._endings.push_async_callback(archive.close)
        return members, forcing

    def _archive(self) -> Archive:
        take = partial(self._housekeeping.take, fresh=True)
        reading = (self._world, self._driver, self._machines, self._meta, self._calls, self._leaders)
        backup, contents = Backup(*reading, take, self._migration.given, self._migration.fetcher), Contents(*reading)
        changes = Changes(self._meta, self._catalog, self._proposals, self._calls, self._leaders, self._settings)
        restore = Restore(self._world, self._meta, changes, self._writer, contents)
        return Archive(self._world, backup, restore, contents, self._fault)

    def _configured(self) -> None:
        """Settings have changed: tell those that keep a copy."""
        self._peers.connect_within(self._settings.connection_timeout_ms)
        if self._client is not None:
            self._client.limits.connections_max = self._settings.connections_max
            self._client.limits.frame_bytes_max = self._settings.frame_bytes_max

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """A task of the node's own: its failure is the node's."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._spawned_ended)
        self._tasks.append(task)

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        if task is not self._tasks[0]:
            self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    # --- what changes -------------------------------------------------------------------------------------------------

    def _meta_applied(self) -> None:
        asyncio.get_running_loop().call_soon(self._meta_changed)

    def _meta_changed(self) -> None:
        """Follow meta: addresses, incarnations, and the replicas that this node has."""
        state = self._meta_machine.state
        if not state.bootstrapped or not self._built:  # it is called once when all is built
            return
        try:
            check_stored_settings(self._settings, state.settings)
        except OtherSettings as error:
            self._fault(error)
            return
        known = [node for node in state.nodes if not (node.dead and taken_over(state, node))]
        for gone in set(self._addresses) - {node.id for node in known}:
            del self._addresses[gone]
        for node in known:
            self._addresses[node.id] = NodeAddress(*node.address)
            if node.incarnation:
                self._incarnations[node.id] = node.incarnation
        self._meta.changed()
        self._replicas.follow()
        self._conductor.wake()
        self._wake_duties()

    def _wake_duties(self) -> None:
        if self._built:
            self._duties.wake()

    def _leader_here(self, number: int) -> int:
        group = self._driver.groups.get(number)
        return 0 if group is None else group.leader_node

    def _members(self, number: int) -> list[int]:
        if number == 0:
            return sorted(self._addresses)
        record = self._meta_machine.state.group(number)
        return [] if record is None else list(record.nodes)

    def _admit(self, identity: PeerIdentity) -> None:
        """Refuse a peer of another cluster, or one whose data are not those that the cluster knows."""
        if identity.cluster and identity.cluster != self._settings.cluster_name:
            raise CallerError(
                Status.START_UP_ERROR,
                f"cluster_name is {self._settings.cluster_name!r} here and {identity.cluster!r} there",
            )

    def receive_raft(self, identity: PeerIdentity, batch: memoryview) -> None:
        """A peer's batch of Raft messages, as it comes from a connection."""
        if self._built:
            self._replicas.receive(identity, batch)

    async def _clear_caches(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        self._writer.clear_cache()
        for machine in self._machines.values():
            machine.data.store.cache.clear()
        return pack(None)

    async def _tell_tale(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        state = self._meta_machine.state if self._built else None
        return pack(tale_of(self._settings, self._incarnation, state).dump())

    # --- serving ------------------------------------------------------------------------------------------------------

    async def _listen_admin(self) -> None:
        try:
            admin = await self._world.network.listen(
                "127.0.0.1", self._settings.nodetool_port, lambda: AdminConnection(self._overview.answer, self._fault)
            )
            self._endings.push_async_callback(admin.close)
        except OSError as error:
            logger.warning("nodetool port %d: %s; the node runs without", self._settings.nodetool_port, error)

    async def _until_serving(self) -> None:
        """Open the client port when this node knows the cluster and its groups have leaders."""
        settings = self._settings
        client = self._client = ClientService(
            self._world,
            self._handler,
            self._fault,
            settings.connections_max,
            settings.frame_bytes_max,
            first_query_id(self._calls.node),
        )
        self._endings.push_async_callback(self._ports.close)
        self._endings.push_async_callback(client.close)
        opened = False
        told_ms = self._world.clock.monotonic_ms()
        while True:
            state = self._meta_machine.state
            if state.bootstrapped and not opened:
                await client.start(settings.client_listen_host, settings.address.client_port)
                opened = True
            if opened and self._ready():
                break
            now = self._world.clock.monotonic_ms()
            if now - told_ms > 3_000:
                told_ms = now
                logger.info("not serving yet: %s", self._lacking())
            await asyncio.sleep(0.01)
        self.serving = True
        logger.info("serves clients on port %d", settings.address.client_port)

    def _ready(self) -> bool:
        return not self._lacking()

    def _lacking(self) -> str:
        """What is missing until this node serves writes; empty where nothing is."""
        state, identity = self._meta_machine.state, self._identity
        if identity is None or not state.bootstrapped:
            missing = ", ".join(
                address.name for number, address in sorted(self._addresses.items()) if number != self._calls.node
            )
            return f"the meta group has no quorum yet (other seeds: {missing})"
        mine = state.node(identity.identifier)
        if mine is None or mine.start != identity.start_number:
            return "this start is not registered yet"
        for record in state.groups:
            replica = record.replica_of(identity.identifier)
            if replica is not None and replica.role is Role.VOTER:
                group = self._driver.groups.get(record.id)
                if group is None or not group.leader_node:
                    return f"group {record.id} has no leader yet"
                if group.leads and self._machines[record.id].told[0] != group.raw.term:
                    return f"group {record.id} does not know its slots yet"
        return ""

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end_tasks(self) -> None:
        """What waits for the log is cancelled before the log ends, its writer with it."""
        for task in self._tasks[1:]:
            task.cancel()
        await self._log.close()
        for task in [one for one in self._tasks if not one.cancelling()]:  # the others may wait for their workers
            task.cancel()
        await asyncio.wait(self._tasks)
