"""What a node is told: addresses, directories, and the values of the configuration keys that are honoured.

The keys themselves, with their files and their fate, are in `configuration.py`; here are plain values with units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster import limits
from iotdb_cluster.schema.inference import InferenceRules

__all__ = ["NodeAddress", "Settings", "parse_seed"]

DEFAULT_SEEDS = "127.0.0.1:9003:40010:55560,127.0.0.1:9005:40012:55561,127.0.0.1:9007:40014:55562"


@dataclass(frozen=True, order=True)
class NodeAddress:
    """Where a node is reached: a host name or address, kept as written and resolved at each connect."""

    host: str
    meta_port: int
    data_port: int
    client_port: int

    @property
    def name(self) -> str:
        """`host:meta_port`, which names a node in seed lists and messages."""
        return f"{self.host}:{self.meta_port}"

    @property
    def text(self) -> str:
        """`host:meta:data:client`, as the tools print a node."""
        return f"{self.host}:{self.meta_port}:{self.data_port}:{self.client_port}"

    def dump(self) -> list[Any]:
        return [self.host, self.meta_port, self.data_port, self.client_port]

    @classmethod
    def load(cls, value: list[Any]) -> NodeAddress:
        host, meta, data, client = value
        return cls(str(host), int(meta), int(data), int(client))


def parse_seed(text: str) -> NodeAddress:
    """`host:meta:data:client`, or the two-part `host:meta` of later releases (data 40010 + distance, client 0).

    Raises ValueError naming the item and the form wanted.
    """
    host, _, ports = text.strip().partition(":")
    parts = ports.split(":")
    if not host or len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise ValueError(f"seed node {text!r}: write host:meta_port:data_port:client_port, or host:meta_port")
    numbers = [int(part) for part in parts]
    if not all(0 < number < 65_536 for number in numbers):
        raise ValueError(f"seed node {text!r}: a port is a number from 1 to 65535")
    if len(numbers) == 1:
        return NodeAddress(host, numbers[0], 0, 0)
    return NodeAddress(host, *numbers)


@dataclass
class Settings:
    """One node's configuration. `address` is what is handed out, `listen_*` what is bound ("" binds every address).

    Only `reloading.py` changes it, and only the settings of `keys.RELOADED`: who keeps a copy of one misses that.
    """

    address: NodeAddress
    seeds: tuple[NodeAddress, ...]
    directory: str
    listen_host: str = ""
    client_listen_host: str = ""
    client_host: str = ""
    log_directory: str = ""
    system_directory: str = ""
    data_directories: tuple[str, ...] = ()
    cluster_name: str = "default"
    replication: int = 3
    nodetool_port: int = 31_999
    web_port: int = 18_080
    heartbeat_interval_ms: int = limits.HEARTBEAT_INTERVAL_MS
    election_timeout_ms: int = limits.ELECTION_TIMEOUT_MS
    connection_timeout_ms: int = limits.CONNECT_TIMEOUT_MS
    write_timeout_ms: int = limits.WRITE_TIMEOUT_MS
    read_timeout_ms: int = limits.READ_TIMEOUT_MS
    query_timeout_ms: int = limits.QUERY_TIMEOUT_MS
    start_timeout_ms: int = 300_000
    consistency: str = "strong"
    read_lag_max: int = limits.READ_LAG_MAX
    partition_interval_ms: int = 604_800_000
    timestamp_precision: str = "ms"
    slot_strategy: str = "hash"
    auto_create_schema: bool = True
    storage_group_level: int = 1
    inference: InferenceRules = field(default_factory=InferenceRules)
    connections_max: int = limits.CONNECTIONS_MAX
    frame_bytes_max: int = limits.FRAME_BYTES_MAX
    query_series_max: int = limits.QUERY_SERIES_MAX
    float_precision: int = 2
    memtable_bytes_max: int = limits.MEMTABLE_BYTES_MAX
    memtable_flush_bytes: int = limits.MEMTABLE_FLUSH_BYTES
    memtable_flush_age_ms: int = limits.MEMTABLE_FLUSH_AGE_MS
    compaction_bytes_per_s: int = limits.COMPACTION_BYTES_PER_S
    log_segment_bytes: int = limits.LOG_SEGMENT_BYTES
    log_bytes_max: int = limits.LOG_BYTES_MAX
    joins: bool = False  # without an identifier yet: ask the seeds to be admitted to their cluster
    replaces: int = 0  # ... in the place of this member, which is dead; 0: none
    accept_loss: bool = False  # start without damaged batches of the log; join without what only `replaces` had
    log_memory_bytes: int = limits.LOG_CACHE_BYTES_MAX
    log_memory_entries: int = limits.LOG_CACHE_ENTRIES_MAX
    log_memory_proportion: float = 0.0  # of the memtables' memory, in place of `log_memory_bytes`; 0: none
    log_entries_max: int = limits.LOG_ENTRIES_MAX
    uncommitted_entries_max: int = limits.UNCOMMITTED_ENTRIES_MAX
    unapplied_entries_max: int = limits.UNAPPLIED_ENTRIES_MAX
    catch_up_timeout_ms: int = 300_000
    snapshot_bytes_per_s: int = limits.SNAPSHOT_BYTES_PER_S
    migration_bytes_per_s: int = limits.MIGRATION_BYTES_PER_S
    disk_free_min_bytes: int = 1 * limits.GIB
    slow_query_threshold_ms: int = 5_000
    admin_name: str = "root"
    admin_password: str = "root"

    @property
    def log_cache_bytes(self) -> int:
        """Memory for recent entries of the log."""
        return int(self.log_memory_proportion * self.memtable_bytes_max) or self.log_memory_bytes

    @property
    def wal_path(self) -> str:
        return self.log_directory or f"{self.directory}/wal"

    @property
    def system_path(self) -> str:
        return self.system_directory or f"{self.directory}/system"

    @property
    def data_paths(self) -> tuple[str, ...]:
        return self.data_directories or (f"{self.directory}/data",)

    def fixed(self) -> dict[str, Any]:
        """What is fixed when the cluster is founded, as meta keeps it."""
        return {
            "cluster_name": self.cluster_name,
            "replication": self.replication,
            "partition_interval_ms": self.partition_interval_ms,
            "timestamp_precision": self.timestamp_precision,
            "slot_strategy": self.slot_strategy,
        }

    def agreement(self) -> dict[str, Any]:
        """What must be equal on all nodes at the first start, by the names of the keys."""
        return {
            "cluster_name": self.cluster_name,
            "default_replica_num": self.replication,
            "hash_salt": limits.SLOT_SALT,
            "partition_interval": self.partition_interval_ms // 1000,
            "timestamp_precision": self.timestamp_precision,
            "slot_strategy": self.slot_strategy,
            "admin_name": self.admin_name,
            "seed_nodes": sorted(seed.name for seed in self.seeds),
        }
