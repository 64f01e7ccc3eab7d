"""Who belongs to the cluster: its founding, the report of each start, and what a node tells strangers of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from iotdb_cluster.auth import SALT_BYTES, hash_password
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.log import Identity
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import Refused, Removed, Tale, identifiers
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import LEVEL, Address, MetaState, Node, commands
from iotdb_cluster.world import World

__all__ = ["Membership", "taken_over", "tale_of"]

logger = logging.getLogger(__name__)

STEP_TIMEOUT_MS = 5_000  # of one proposal


class Membership:
    """Founds the cluster where this node leads the meta group first, and registers its starts."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        identity: Identity,
        meta: MetaAccess,
        addresses: Mapping[int, NodeAddress],
    ) -> None:
        self._world = world
        self._settings = settings
        self._identity = identity
        self._meta = meta
        self._addresses = addresses

    async def found(self) -> None:
        """The cluster's first entry; harmless when it comes twice."""
        settings = self._settings
        salt = self._world.random.randbytes(SALT_BYTES)
        hashed = await self._world.workers.run(hash_password, settings.admin_password, salt)
        nodes = [
            (number, Address(*self._addresses[number].dump()))
            for number in sorted(identifiers(settings.seeds).values())
        ]
        command = commands.bootstrap(settings.fixed(), nodes, hashed, administrator=settings.admin_name, level=LEVEL)
        await self._meta.propose(lambda _: command, Deadline(self._world, STEP_TIMEOUT_MS))

    async def register(self) -> None:
        """Report this start to the cluster, once; raises Refused where it says why this node must not be here."""
        identity = self._identity
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
                Deadline(self._world, STEP_TIMEOUT_MS),
            )
        except CallerError as error:
            if error.code == Status.START_UP_ERROR:
                gone = self._meta.state.removed_node(identity.identifier) or "is not a member" in error.message
                raise (Removed if gone else Refused)(error.message) from None
            raise
        self._compare_settings()

    def _compare_settings(self) -> None:
        """The stored membership and replication rule; a configuration that says otherwise is worth a line."""
        state = self._meta.state
        members = sorted(f"{node.address.host}:{node.address.meta_port}" for node in state.nodes)
        strangers = sorted({seed.name for seed in self._settings.seeds} - set(members))
        if strangers:
            logger.warning("seed_nodes has %s; the cluster's members are %s, and these count", strangers, members)
        if self._settings.replication != state.replication:
            logger.warning(
                "default_replica_num is %d; the cluster's replication number is %d, and this counts",
                self._settings.replication,
                state.replication,
            )


def taken_over(state: MetaState, node: Node) -> bool:
    """Whether another member is reached at this one's address: who calls the dead one would be answered by that."""
    return any(other.id != node.id and other.address[:2] == node.address[:2] for other in state.nodes)


def tale_of(settings: Settings, incarnation: int, state: MetaState | None) -> Tale:
    """What this node answers to who asks at a first start; `state` is None while it knows of no cluster."""
    formed = state is not None and state.bootstrapped
    nodes = state.nodes if state is not None and formed else []
    incarnations = {
        f"{node.address.host}:{node.address.meta_port}": node.incarnation for node in nodes if node.registered
    }
    name = settings.address.name
    return Tale(name, settings.address, incarnation, settings.agreement(), formed, incarnations)
