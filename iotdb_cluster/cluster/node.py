"""A whole node: its rooms put together, started, and stopped.

The order of a start: lock and identity, ports for peers, the first start's check (once in a node's life), the durable
log, the meta group, then whatever groups meta says that this node has replicas of, then the port for clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any

from iotdb_cluster.auth import SALT_BYTES, hash_password
from iotdb_cluster.cluster.admin import AdminConnection
from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.catalog import Catalog
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.duties import Duties
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.housekeeping import Housekeeping
from iotdb_cluster.cluster.log import (
    DurableLog,
    Identity,
    Install,
    LogOptions,
    make_durable_directories,
    open_identity,
    set_identifier,
)
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.outbox import PeerOutbox, read_batch
from iotdb_cluster.cluster.overview import Overview
from iotdb_cluster.cluster.peers import NodePeers, PeerPorts
from iotdb_cluster.cluster.points import PointServing
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.queries import Queries
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.cluster.room import RoomGuard
from iotdb_cluster.cluster.schema_reads import SchemaServing
from iotdb_cluster.cluster.service import VERSION, ClientNode
from iotdb_cluster.cluster.serving import WriteServing
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import (
    OtherSettings,
    Refused,
    Tale,
    agree_with_seeds,
    check_stored_settings,
    identifiers,
)
from iotdb_cluster.cluster.statement_reads import ReadServices
from iotdb_cluster.cluster.statements import Statements
from iotdb_cluster.cluster.texts import TextConverter
from iotdb_cluster.cluster.writes import Writer
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import APPEND_BYTES_MAX, INFLIGHT_BYTES_MAX, MIB, UNCOMMITTED_BYTES_MAX
from iotdb_cluster.meta import Address, commands
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import Config, ConfState, RawNode
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.rpc.service import ClientService
from iotdb_cluster.world import File, Server, World

__all__ = ["Node"]

logger = logging.getLogger(__name__)

TICK_PART = 1  # ticks a heartbeat interval
ASK_TIMEOUT_MS = 5_000  # of one question to a seed at the first start
LEVEL = 1  # the cluster level that this program knows
APPLY_BYTES_MAX = 1 * MIB  # entries that are applied in one loop turn
STOP_MS_MAX = 10_000  # of the last checkpoint at a clean stop


class Node:
    """One node. `run` ends when `request_stop` is called, or with the failure that stopped it."""

    def __init__(self, world: World, settings: Settings, facts: Mapping[str, Any] | None = None) -> None:
        """`facts` are told with the node's health: what its process knows of itself."""
        self._facts = dict(facts or {})
        self._world = world
        self._settings = settings
        self._stop: asyncio.Future[None] | None = None
        self._lock: File | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._machines: dict[int, DataMachine] = {}
        self._addresses: dict[int, NodeAddress] = {}
        self._incarnations: dict[int, int] = {}
        self._identity: Identity | None = None
        self._admin: Server | None = None
        self._client: ClientService | None = None
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
            start.cancel()
            await asyncio.wait([start])
            await self._close()

    async def _start(self, on_serving: Callable[[], None]) -> None:
        self._take_directories()
        settings, world = self._settings, self._world
        identity = open_identity(world.files, settings.wal_path, settings.data_paths, world.random)
        self._incarnation = identity.incarnation
        self._peers = NodePeers(world, self._greeting(identity), self._addresses.get, settings.connection_timeout_ms)
        self._calls = Calls(0, self._peers)
        self._calls.handlers["tale"] = self._tell_tale
        self._register_later()
        self._ports = PeerPorts(world, self._calls.handlers, self._on_raft, self._admit, self._fault)
        await self._ports.start(settings.listen_host or settings.address.host, settings.address)
        if not identity.identifier:
            identity = await self._found(identity)
        self._identity = identity
        self._peers.identify(self._greeting(identity))
        self._calls.node = identity.identifier
        self._addresses.setdefault(identity.identifier, settings.address)
        if not self._meta_addresses_known():
            self._addresses.update(_seed_addresses(settings))
        await self._build(identity)
        await self._until_serving()
        on_serving()

    def _take_directories(self) -> None:
        files = self._world.files
        for path in (self._settings.system_path, self._settings.wal_path, *self._settings.data_paths):
            make_durable_directories(files, path)
        try:
            self._lock = files.lock(f"{self._settings.system_path}/lock")
        except BlockingIOError:
            raise BlockingIOError(f"{self._settings.system_path} is used by another process") from None

    def _greeting(self, identity: Identity) -> PeerIdentity:
        incarnation = identity.incarnation.to_bytes(8, "big")
        cluster = self._settings.cluster_name
        return PeerIdentity(identity.identifier, incarnation, "", cluster, identity.start_number)

    async def _found(self, identity: Identity) -> Identity:
        """The first start: agree with the seeds, then write down who this node is."""

        async def ask(address: NodeAddress) -> Tale:
            answer = await self._peers.call_stranger(address, "tale", pack(None), ASK_TIMEOUT_MS)
            head, _ = unpack(answer)
            return Tale.load(head)

        founders = await agree_with_seeds(self._world, self._settings, identity.incarnation, ask)
        self._addresses.update(founders.addresses)
        self._incarnations.update(founders.incarnations)
        return set_identifier(self._world.files, self._settings.wal_path, identity, founders.me)

    def _meta_addresses_known(self) -> bool:
        return len(self._addresses) > 1

    # --- putting the rooms together -----------------------------------------------------------------------------------

    def _register_later(self) -> None:
        """Names of the handlers that are put in place once the rooms stand; until then they answer 700."""

        async def not_yet(body: memoryview, deadline: Deadline) -> bytes:
            del body, deadline
            raise CallerError(Status.PARTITION_NOT_READY, "the node is starting: try again")

        for name in [
            "propose",
            "resolve",
            "retired",
            "schema",
            "points",
            "scan|open",
            "scan|pull",
            "scan|close",
            "low|water",
            "flush",
            "state",
            "digest",
        ]:
            self._calls.handlers.setdefault(name.replace("|", " "), not_yet)

    async def _build(self, identity: Identity) -> None:
        world, settings = self._world, self._settings
        options = LogOptions(segment_bytes=settings.log_segment_bytes)
        self._log = DurableLog.open(
            world.files, settings.wal_path, world.random, options, workers=world.workers, on_fault=self._fault
        )
        self._spawn(self._log.run())
        outbox = PeerOutbox(identity.identifier, identity.incarnation, self._peers.send_raft)
        tick_ms = settings.heartbeat_interval_ms / TICK_PART
        self._driver = Driver(world, self._log, outbox, identity.identifier, tick_ms, self._fault)
        self._leaders = Leaders(world, self._leader_here, self._members)
        self._requests = RequestIds(identity.identifier, identity.start_number)
        self._proposals = Proposals(self._calls, self._leaders, self._requests)
        self._meta_machine = MetaMachine(world.files, f"{settings.system_path}/meta", self._meta_applied)
        meta_group = await self._open_meta(identity)
        self._meta = MetaAccess(
            self._driver, meta_group, self._meta_machine, self._calls, self._leaders, self._requests
        )
        self._catalog = Catalog(self._meta, self._calls, self._leaders, settings)
        self._points = PointServing(world, self._driver, self._machines)
        self._housekeeping = Housekeeping(
            world, settings, self._driver, self._log, self._meta_machine, self._machines, self._points, self._calls
        )
        guard = RoomGuard(world, settings, self._housekeeping.memory_bytes)
        WriteServing(self._driver, self._machines, self._proposals, guard).register(self._calls)
        SchemaServing(self._driver, self._machines).register(self._calls)
        self._points.register(self._calls)
        self._housekeeping.register(self._calls)
        self._duties = Duties(
            world,
            self._driver,
            self._meta,
            self._proposals,
            self._machines,
            self._bootstrap,
            self._register_node,
        )
        self._handler = self._client_node()
        self._overview = Overview(
            world,
            settings,
            self._driver,
            self._meta,
            self._machines,
            self._calls,
            lambda: self.serving,
            self._facts,
        )
        self._overview.register(self._calls)
        await self._listen_admin()
        self._driver.start()
        self._meta_changed()
        self._spawn(self._duties.run())
        self._spawn(self._housekeeping.run())
        self._spawn(self._housekeeping.compact_forever())

    def _client_node(self) -> ClientNode:
        world, settings = self._world, self._settings
        services = ReadServices(
            world,
            self._meta,
            self._catalog,
            self._calls,
            self._leaders,
            settings,
            lambda: queries.running(),
            self._housekeeping.flush_tasks,
        )
        queries = Queries(world, services, VERSION)
        writer = Writer(self._catalog, self._proposals, settings, world.workers)
        texts = TextConverter(self._catalog, settings)
        changes = Changes(self._meta, self._catalog, self._proposals, self._calls, self._leaders, settings)
        statements = Statements(world, settings, self._meta, writer, texts, changes, queries, self._flush_everywhere)
        return ClientNode(world, settings, self._meta, writer, texts, changes, queries, statements)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """A task of the node's own: its failure is the node's."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._spawned_ended)
        self._tasks.append(task)

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    # --- groups -------------------------------------------------------------------------------------------------------

    def _config(self, replica: int, log: Any, applied: int) -> Config:
        settings = self._settings
        election = max(2, round(settings.election_timeout_ms / settings.heartbeat_interval_ms * TICK_PART))
        return Config(
            replica,
            log,
            Random(self._world.random.getrandbits(64)),
            applied=applied,
            election_tick=election,
            heartbeat_tick=TICK_PART,
            committed_bytes_per_ready_max=APPLY_BYTES_MAX,
            # What a Ready can hold must fit in a segment, whole.
            uncommitted_bytes_max=min(UNCOMMITTED_BYTES_MAX, settings.log_segment_bytes // 2),
            inflight_bytes_max=max(APPEND_BYTES_MAX, min(INFLIGHT_BYTES_MAX, settings.log_segment_bytes // 4)),
            async_storage_writes=True,
            disable_proposal_forwarding=True,
        )

    async def _open_meta(self, identity: Identity) -> Group:
        view = self._log.view(identity.identifier)
        if view.last_index() == 0:  # the founders are the group as of index 1, which holds no entry
            voters = ConfState(tuple(sorted(identifiers(self._settings.seeds).values())))
            await self._submitted(Install(identity.identifier, 1, 1, voters))
        machine = self._meta_machine
        machine.recover(view)
        machine.members = view.initial_state()[1]
        if machine.index == 1:
            machine.term = 1
        view.snapshot_source = machine.snapshot
        raw = RawNode(self._config(identity.identifier, view, machine.index))
        members = {member: member for member in (*machine.members.voters, *machine.members.learners)}
        group = Group(0, 1, identity.identifier, raw, view, machine, members, applied=machine.index)
        group.leader_changed = self._leader_changed
        self._driver.add(group)
        return group

    async def _submitted(self, *records: Install) -> None:
        """Wait until records are durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log.submit(list(records), lambda: done.set_result(None))
        await done

    def _leader_changed(self, group: Group) -> None:
        if group.leads:
            logger.info("leads group %d in term %d", group.id, group.raw.term)
        self._duties.wake()

    def _meta_applied(self) -> None:
        asyncio.get_running_loop().call_soon(self._meta_changed)

    def _meta_changed(self) -> None:
        """Follow meta: addresses, incarnations, and the replicas that this node has."""
        state = self._meta_machine.state
        identity = self._identity
        if not state.bootstrapped or identity is None:
            return
        try:
            check_stored_settings(self._settings, state.settings)
        except OtherSettings as error:
            self._fault(error)
            return
        for node in state.nodes:
            self._addresses[node.id] = NodeAddress(*node.address)
            if node.incarnation:
                self._incarnations[node.id] = node.incarnation
        for record in state.groups:
            replica = record.replica_of(identity.identifier)
            if replica is not None and record.id not in self._opening and record.id not in self._driver.groups:
                self._opening.add(record.id)
                self._spawn(self._open_data(record, replica.id))
        self._duties.wake()

    async def _open_data(self, record: GroupRecord, replica: int) -> None:
        """Make, or open again, this node's replica of a data group."""
        view = self._log.view(replica)
        if view.last_index() == 0:
            voters = ConfState(tuple(one.id for one in record.voters))
            await self._submitted(Install(replica, 1, 1, voters))
        path = f"{self._settings.data_paths[0]}/group-{record.id}-{record.generation}-{replica}"
        make_durable_directories(self._world.files, path)
        data = await self._world.workers.run(DataGroup.open, record.id, self._world.files, path)
        machine = DataMachine(data, self._duties.wake)
        applied = max(data.applied, 1)
        if applied < view.first_index() - 1:
            raise CorruptData(
                f"group {record.id}: its checkpoint is at {data.applied}, its log begins at {view.first_index()}"
            )
        raw = RawNode(self._config(replica, view, applied))
        nodes = {one.id: one.node for one in record.replicas}
        group = Group(record.id, record.generation, replica, raw, view, machine, nodes, applied=applied)
        group.leader_changed = self._leader_changed
        self._machines[record.id] = machine
        self._driver.add(group)
        self._opening.discard(record.id)

    @property
    def _opening(self) -> set[int]:
        found: set[int] = self.__dict__.setdefault("_opening_groups", set())
        return found

    def _leader_here(self, number: int) -> int:
        group = self._driver.groups.get(number)
        return 0 if group is None else group.leader_node

    def _members(self, number: int) -> list[int]:
        if number == 0:
            return sorted(self._addresses)
        record = self._meta_machine.state.group(number)
        return [] if record is None else list(record.nodes)

    # --- Raft messages ------------------------------------------------------------------------------------------------

    def _admit(self, identity: PeerIdentity) -> None:
        """Refuse a peer of another cluster, or one whose data are not those that the cluster knows."""
        if identity.cluster and identity.cluster != self._settings.cluster_name:
            raise CallerError(
                Status.START_UP_ERROR,
                f"cluster_name is {self._settings.cluster_name!r} here and {identity.cluster!r} there",
            )

    def _on_raft(self, identity: PeerIdentity, batch: memoryview) -> None:
        if self._identity is None or not hasattr(self, "_driver"):
            return
        try:
            node, incarnation, envelopes = read_batch(batch)
            known = self._incarnations.setdefault(node, incarnation)
            if node != identity.node or known != incarnation:
                return  # another incarnation of that node: what it says is not what the group knows it by
            for envelope in envelopes:
                group = self._driver.groups.get(envelope.group)
                if group is None or (group.generation, group.replica) != (envelope.generation, envelope.replica):
                    continue
                if group.nodes.get(envelope.message.source) == node:
                    self._driver.step(group, envelope.message)
        except CorruptData as error:
            logger.warning("a batch of node %d is dropped: %s", identity.node, error)

    # --- duties -------------------------------------------------------------------------------------------------------

    async def _bootstrap(self) -> None:
        """Found the cluster: the meta group's leader does it once."""
        settings = self._settings
        salt = self._world.random.randbytes(SALT_BYTES)
        hashed = await self._world.workers.run(hash_password, settings.admin_password, salt)
        agreed = {
            "cluster_name": settings.cluster_name,
            "replication": settings.replication,
            "partition_interval_ms": settings.partition_interval_ms,
            "timestamp_precision": settings.timestamp_precision,
        }
        nodes = [
            (number, Address(*self._addresses[number].dump()))
            for number in sorted(identifiers(settings.seeds).values())
        ]
        command = commands.bootstrap(agreed, nodes, hashed, level=LEVEL)
        await self._meta.propose(lambda _: command, self._deadline())

    async def _register_node(self) -> None:
        """Report this start to the cluster, once."""
        identity = self._identity
        if identity is None:
            return
        address = Address(*self._settings.address.dump())
        known = self._meta.state.node(identity.identifier)
        if known is not None and (known.incarnation, known.start, known.address) == (
            identity.incarnation,
            identity.start_number,
            address,
        ):
            return
        try:
            await self._meta.propose(
                lambda request: commands.register_node(
                    request, identity.identifier, identity.incarnation, identity.start_number, address, LEVEL
                ),
                self._deadline(),
            )
        except CallerError as error:
            if error.code == Status.START_UP_ERROR:
                raise Refused(error.message) from None
            raise
        self._compare_seeds()

    def _compare_seeds(self) -> None:
        """The stored membership rules; a seed list that says otherwise is worth a line."""
        stored = sorted(f"{node.address.host}:{node.address.meta_port}" for node in self._meta.state.nodes)
        given = sorted(seed.name for seed in self._settings.seeds)
        if stored != given:
            logger.warning("seed_nodes are %s; the cluster's members are %s, and these count", given, stored)

    def _deadline(self) -> Deadline:
        return Deadline(self._world, ASK_TIMEOUT_MS)

    async def _flush_everywhere(self, paths: Any, deadline: Deadline) -> None:
        """FLUSH: every node's memtables go to disk; 303 where a path is no storage group."""
        await self._meta.barrier(deadline)
        state = self._meta.state
        known = {group.path for group in state.storage_groups()}
        missing = [path for path in paths if path not in known]
        if missing:
            raise CallerError(
                Status.METADATA_ERROR,
                f"Storage group is not set for current seriesPath: [{','.join(missing)}]",
            )
        await asyncio.gather(
            *(self._calls.call(node.id, "flush", pack(None), deadline) for node in state.nodes if node.registered)
        )

    async def _tell_tale(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        formed, incarnations = False, {}
        if hasattr(self, "_meta_machine"):
            state = self._meta_machine.state
            formed = state.bootstrapped
            nodes = state.nodes if formed else []
            incarnations = {
                f"{node.address.host}:{node.address.meta_port}": node.incarnation for node in nodes if node.registered
            }
        settings = self._settings
        tale = Tale(
            settings.address.name, settings.address, self._incarnation, settings.agreement(), formed, incarnations
        )
        return pack(tale.dump())

    # --- serving ------------------------------------------------------------------------------------------------------

    async def _listen_admin(self) -> None:
        try:
            self._admin = await self._world.network.listen(
                "127.0.0.1", self._settings.nodetool_port, lambda: AdminConnection(self._overview.answer)
            )
        except OSError as error:
            logger.warning("nodetool port %d: %s; the node runs without", self._settings.nodetool_port, error)

    async def _until_serving(self) -> None:
        """Open the client port when this node knows the cluster and its groups have leaders."""
        settings = self._settings
        self._client = ClientService(
            self._world, self._handler, self._fault, settings.connections_max, settings.frame_bytes_max
        )
        opened = False
        told_ms = self._world.clock.monotonic_ms()
        while True:
            state = self._meta_machine.state
            if state.bootstrapped and not opened:
                await self._client.start(settings.client_listen_host, settings.address.client_port)
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
            if record.replica_of(identity.identifier) is not None:
                group = self._driver.groups.get(record.id)
                if group is None or not group.leader_node:
                    return f"group {record.id} has no leader yet"
                if group.leads and self._machines[record.id].told[0] != group.raw.term:
                    return f"group {record.id} does not know its slots yet"
        return ""

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """Stop serving, end the tasks, close the log; what is on disk is enough for the next start."""
        self.serving = False
        if self._client is not None:
            await self._client.close()
        if self._admin is not None:
            await self._admin.close()
        for name in ("_ports", "_peers"):
            part = getattr(self, name, None)
            if part is not None:
                await part.close()
        driver = getattr(self, "_driver", None)
        if driver is not None:
            driver.stop()
        log = getattr(self, "_log", None)
        for task in self._tasks[1:] if log is not None else self._tasks:
            task.cancel()
        if log is not None:
            await log.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if hasattr(self, "_points"):
            self._points.close()
        if self._lock is not None:
            self._lock.close()


def _seed_addresses(settings: Settings) -> dict[int, NodeAddress]:
    """The founders' addresses as the seed list has them."""
    places = identifiers(settings.seeds)
    return {places[seed.name]: seed for seed in settings.seeds if seed.data_port}
