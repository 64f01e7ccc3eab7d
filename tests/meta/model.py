"""A meta state that takes commands in order, for the tests of this room and of the plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from iotdb_cluster.errors import CallerError
from iotdb_cluster.meta import Address, MetaState, commands
from iotdb_cluster.requests import RequestId

SETTINGS = {"cluster_name": "c", "replication": 3, "partition_interval_ms": 604_800_000, "hash_salt": 2333}
AGREED = {
    "cluster_name": "c",
    "default_replica_num": 3,
    "partition_interval": 604_800,
    "hash_salt": 2333,
    "slot_strategy": "hash",
}


def address(node: int) -> Address:
    return Address("127.0.0.1", 9001 + 2 * node, 40008 + 2 * node, 55559 + node)


def bootstrap(nodes: int = 3, **changed: Any) -> bytes:
    return commands.bootstrap({**SETTINGS, **changed}, [(node, address(node)) for node in range(1, nodes + 1)], "hash")


@dataclass
class Meta:
    """A state and the next index and sequence."""

    state: MetaState = field(default_factory=MetaState)
    sequence: int = 0

    @classmethod
    def founded(cls, nodes: int = 3, **changed: Any) -> Meta:
        meta = cls()
        meta.entry(bootstrap(nodes, **changed)).unwrap()
        for node in range(1, nodes + 1):
            meta.do(commands.register_node, node, 70 + node, 1, address(node), 1)
        return meta

    def entry(self, payload: bytes) -> Any:
        return self.state.apply(self.state.applied + 1, payload)

    def do(self, command: Callable[..., bytes], *fields: Any) -> Any:
        self.sequence += 1
        return self.entry(command(RequestId(1, 1, self.sequence, self.sequence), *fields)).unwrap()

    def refused(self, code: int, message: str, command: Callable[..., bytes], *fields: Any) -> None:
        with pytest.raises(CallerError) as caught:
            self.do(command, *fields)
        assert (caught.value.code, caught.value.message) == (code, message)

    def refuses(self, part: str, command: Callable[..., bytes], *fields: Any) -> None:
        """Refused for this reason, and nothing of the cluster has changed."""
        before = self.state._cluster.dump()
        with pytest.raises(CallerError) as caught:
            self.do(command, *fields)
        assert part in caught.value.message
        assert self.state._cluster.dump() == before

    def join(self, node: int, incarnation: int = 0, replaces: int = 0, **agreed: Any) -> Any:
        settings = {**AGREED, "default_replica_num": self.state.replication, **agreed}
        at = address(node)
        return self.do(commands.join_node, at, incarnation or 170 + node, 1, 1, settings, replaces)

    def reload(self) -> None:
        self.state = MetaState.load(self.state.dump())
