"""Every configuration key that users of the original know, with its file, its default here, and what becomes of it.

`fate` is one of: `honoured`; `renamed` (honoured under the key that `setting` says); `accepted` (no effect, one line in
the log); `refused` (the node does not start with the value in `refuse`; `!x` refuses every value but x).
`docs/configuration.md` is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLUSTER_FILE", "ENGINE_FILE", "KEYS", "RELOADED", "Key"]

CLUSTER_FILE = "iotdb-cluster.properties"
ENGINE_FILE = "iotdb-engine.properties"


# Settings that are read whenever they matter: LOAD CONFIGURATION changes them. All others need a restart.
RELOADED = frozenset(
    {
        "auto_create_schema",
        "connection_timeout_ms",
        "connections_max",
        "consistency",
        "frame_bytes_max",
        "infer_boolean",
        "infer_floating",
        "infer_integer",
        "infer_long",
        "infer_nan",
        "log_bytes_max",
        "memtable_bytes_max",
        "memtable_flush_age_ms",
        "memtable_flush_bytes",
        "migration_bytes_per_s",
        "query_series_max",
        "query_timeout_ms",
        "read_lag_max",
        "read_timeout_ms",
        "slow_query_threshold_ms",
        "storage_group_level",
        "write_timeout_ms",
    }
)


@dataclass(frozen=True, slots=True)
class Key:
    """`setting` names the field of `Settings`, `kind` how the text is read (see `configuration.py`)."""

    name: str
    file: str
    fate: str
    default: str
    about: str
    setting: str = ""
    kind: str = "text"
    common: bool = False  # must be equal on all nodes
    refuse: str = ""

    @property
    def reload(self) -> bool:
        """Whether LOAD CONFIGURATION changes it while the node runs."""
        return self.setting in RELOADED


def _c(name: str, default: str, setting: str, kind: str, about: str, *, common: bool = False) -> Key:
    return Key(name, CLUSTER_FILE, "honoured", default, about, setting, kind, common=common)


def _e(name: str, default: str, setting: str, kind: str, about: str, *, common: bool = False) -> Key:
    return Key(name, ENGINE_FILE, "honoured", default, about, setting, kind, common)


def _n(file: str, about: str, *names: str) -> list[Key]:
    return [Key(name, file, "accepted", "", about) for name in names]


def _r(file: str, name: str, refuse: str, about: str) -> Key:
    return Key(name, file, "refused", "", about, refuse=refuse)


_CLUSTER: list[Key] = [
    _c("cluster_rpc_ip", "127.0.0.1", "host", "text", "the address that this node hands out to peers and clients"),
    Key("internal_ip", CLUSTER_FILE, "renamed", "", "as cluster_rpc_ip, where that is absent", "host"),
    _c("internal_meta_port", "9003", "meta_port", "port", "meta group; the port above it carries its heartbeats"),
    _c("internal_data_port", "40010", "data_port", "port", "data groups; the port above it carries their heartbeats"),
    _c("cluster_rpc_port", "55560", "client_port", "port", "clients"),
    _c(
        "seed_nodes",
        "127.0.0.1:9003:40010:55560,127.0.0.1:9005:40012:55561,127.0.0.1:9007:40014:55562",
        "seeds",
        "seeds",
        "the founders, and whom a new node asks; host:meta:data:client or host:meta; read at the first start only",
        common=True,
    ),
    _c("max_concurrent_client_num", "10000", "connections_max", "positive", "connections of clients to this node"),
    _c(
        "default_replica_num",
        "3",
        "replication",
        "positive",
        "replicas of every slot when the cluster is founded; afterwards `nodetool.sh set-replication` changes it",
        common=True,
    ),
    _c(
        "slot_strategy",
        "hash",
        "slot_strategy",
        "slot_strategy",
        "hash, or round_robin: storage groups named ..._N lie "
        "whole at the founder N modulo their number, others by hash; fixed at the first start",
        common=True,
    ),
    _c("cluster_name", "default", "cluster_name", "text", "guards against joining the wrong cluster", common=True),
    _c("connection_timeout_ms", "20000", "connection_timeout_ms", "positive", "a connection between nodes"),
    _c("write_operation_timeout_ms", "30000", "write_timeout_ms", "positive", "one write, forwarding included"),
    _c("read_operation_timeout_ms", "30000", "read_timeout_ms", "positive", "one read from another node"),
    _c("heartbeat_interval_ms", "100", "heartbeat_interval_ms", "positive", "a leader's beat"),
    _c("election_timeout_ms", "500", "election_timeout_ms", "positive", "a follower's patience; randomised to twice"),
    _c("enable_auto_create_schema", "true", "auto_create_schema", "bool", "series are created by the first insert"),
    _c("consistency_level", "strong", "consistency", "consistency", "reads: strong, mid or weak"),
    _c(
        "max_read_log_lag",
        "1000",
        "read_lag_max",
        "positive",
        "committed entries that a replica may lack for `mid` reads",
    ),
    _c("nodetool_port", "31999", "nodetool_port", "port", "nodetool.sh, on loopback"),
    _c("web_port", "18080", "web_port", "port", "/metrics and /health, on loopback"),
    _c(
        "max_raft_log_persist_data_size_per_file",
        "67108864",
        "log_segment_bytes",
        "segment",
        "bytes of a segment of the durable log, clipped to 16 MiB .. 256 MiB",
    ),
    _c(
        "log_bytes_max",
        "1073741824",
        "log_bytes_max",
        "positive",
        "what pins more of the log is flushed, and members that are away are not waited for",
    ),
    _c(
        "max_memory_size_for_raft_log",
        "67108864",
        "log_memory_bytes",
        "positive",
        "recent log entries in memory; older ones are read from the disk",
    ),
    _c("max_num_of_logs_in_mem", "100000", "log_memory_entries", "positive", "the same, as a number of entries"),
    _c(
        "raft_log_memory_proportion",
        "",
        "log_memory_proportion",
        "proportion",
        "of memtable_memory_mb for recent log entries, in place of max_memory_size_for_raft_log; from 0 to 1",
    ),
    _c(
        "max_persist_raft_log_number_on_disk",
        "1000000",
        "log_entries_max",
        "positive",
        "entries of a group that are kept for members that lag; beyond, as beyond log_bytes_max, they get a snapshot",
    ),
    _c(
        "uncommitted_raft_log_num_for_reject_threshold",
        "100000",
        "uncommitted_entries_max",
        "positive",
        "entries of a group that are on their way; beyond it writes wait, then get 413",
    ),
    _c(
        "unapplied_raft_log_num_for_reject_threshold",
        "100000",
        "unapplied_entries_max",
        "positive",
        "committed entries of a group that a node has not applied; beyond it it takes no more until it has",
    ),
    _c(
        "catch_up_timeout_ms",
        "300000",
        "catch_up_timeout_ms",
        "positive",
        "one attempt to bring a snapshot to a member; the next one goes on where it ended",
    ),
    _c(
        "snapshot_bandwidth_mb",
        "64",
        "snapshot_bytes_per_s",
        "megabytes",
        "MiB a second of snapshots that a node sends",
    ),
    _c(
        "migration_bandwidth_mb",
        "1024",
        "migration_bytes_per_s",
        "megabytes",
        "MiB a second of units that a node sends, and that it receives, for moves and repairs; 8 at most while it"
        " serves clients",
    ),
    _c(
        "disk_free_min_bytes",
        "1073741824",
        "disk_free_min_bytes",
        "count",
        "below it points are refused (413); a leader hands over to a member that has room",
    ),
    _c("start_timeout_ms", "300000", "start_timeout_ms", "positive", "the first start waits so long for a quorum"),
    _r(CLUSTER_FILE, "open_server_rpc_port", "true", "there is no port that bypasses the cluster"),
    _r(CLUSTER_FILE, "is_enable_raft_log_persistence", "false", "it would lose acknowledged writes"),
    _r(CLUSTER_FILE, "multi_raft_factor", "!1", "a node heads one data group"),
    *_n(CLUSTER_FILE, "nodetool has a port of its own", "cluster_info_public_port"),
    *_n(CLUSTER_FILE, "nodes speak the binary protocol among themselves", "rpc_thrift_compression_enable"),
    *_n(
        CLUSTER_FILE,
        "the server is asynchronous, and every entry is synced before it is acknowledged",
        "is_use_async_server",
        "is_use_async_applier",
        "flush_raft_log_threshold",
    ),
    *_n(
        CLUSTER_FILE,
        "the durable log bounds its memory and its files by bytes",
        "min_num_of_logs_in_mem",
        "log_deletion_check_interval_second",
        "raft_log_buffer_size",
        "max_raft_log_index_size_in_memory",
        "max_number_of_persist_raft_log_files",
        "max_number_of_logs_per_fetch_on_disk",
    ),
    *_n(
        CLUSTER_FILE,
        "followers are brought up from the log in bounded batches",
        "use_batch_in_catch_up",
        "enable_use_persist_log_on_disk_to_catch_up",
        "max_sync_log_lag",
    ),
    *_n(
        CLUSTER_FILE,
        "a node keeps one connection a kind of traffic to each peer",
        "max_client_pernode_permember_number",
        "max_idle_client_pernode_permember_number",
        "wait_client_timeout_ms",
    ),
]

_ENGINE: list[Key] = [
    _e("rpc_address", "0.0.0.0", "client_listen_host", "listen", "listen address for clients; 0.0.0.0: every address"),
    Key("rpc_port", ENGINE_FILE, "renamed", "", "client port where cluster_rpc_port is absent", "client_port", "port"),
    _e("thrift_max_frame_size", "536870912", "frame_bytes_max", "positive", "a longer frame ends the connection"),
    Key("rpc_max_concurrent_client_num", ENGINE_FILE, "renamed", "", "where max_concurrent_client_num is absent",
        "connections_max", "positive"),
    _e("wal_dir", "data/wal", "log_directory", "directory", "the durable log"),
    _e("system_dir", "data/system", "system_directory", "directory", "membership, schema and checkpoints"),
    _e("data_dirs", "data/data", "data_directories", "directories", "chunk files; a comma list, the first is used"),
    _e("timestamp_precision", "ms", "timestamp_precision", "precision", "ms, us or ns; fixed at the first start",
       common=True),
    _e("partition_interval", "604800", "partition_interval_ms", "seconds", "seconds of a time partition; fixed at the "
       "first start", common=True),
    _e("memtable_size_threshold", "67108864", "memtable_flush_bytes", "positive", "a unit's memtable is flushed at"),
    _e("memtable_memory_mb", "", "memtable_bytes_max", "megabytes", "all memtables of the node, with what cursors pin; "
       "beyond it writes wait, then get 413; a quarter of the memory that the process may use"),
    _e("unseq_memtable_flush_interval_in_ms", "3600000", "memtable_flush_age_ms", "positive", "age of a memtable that "
       "is flushed"),
    _e("merge_write_throughput_mb_per_sec", "16", "compaction_bytes_per_s", "megabytes", "what compaction may write"),
    Key("compaction_write_throughput_mb_per_sec", ENGINE_FILE, "renamed", "", "the name of 0.13",
        "compaction_bytes_per_s", "megabytes"),
    _e("query_timeout_threshold", "60000", "query_timeout_ms", "positive", "ms; a statement may override it"),
    _e("max_deduplicated_path_num", "1000", "query_series_max", "positive", "series in one query"),
    _e("slow_query_threshold", "5000", "slow_query_threshold_ms", "positive", "ms; slower ones are logged"),
    _e("default_storage_group_level", "1", "storage_group_level", "positive", "nodes after root of a storage group "
       "that the first insert creates", common=True),
    _e("boolean_string_infer_type", "BOOLEAN", "infer_boolean", "type", "type of the text true or false", common=True),
    _e("integer_string_infer_type", "FLOAT", "infer_integer", "type", "type of a whole number", common=True),
    _e("long_string_infer_type", "DOUBLE", "infer_long", "type", "type of a larger whole number", common=True),
    _e("floating_string_infer_type", "FLOAT", "infer_floating", "type", "type of a number with a point", common=True),
    _e("nan_string_infer_type", "DOUBLE", "infer_nan", "type", "type of NaN", common=True),
    _e("float_precision", "2", "float_precision", "count", "decimals at read of RLE and TS_2DIFF floating series"),
    _e("admin_name", "root", "admin_name", "user", "the administrator's name; first start only", common=True),
    _e("admin_password", "root", "admin_password", "text", "the administrator's password; first start only"),
    _r(ENGINE_FILE, "rpc_advanced_compression_enable", "true", "Snappy inside frames is not spoken"),
    _r(ENGINE_FILE, "enable_influxdb_rpc_service", "true", "the Influx protocol is not spoken"),
    _r(ENGINE_FILE, "enable_wal", "false", "it would lose acknowledged writes"),
    _r(ENGINE_FILE, "tsfile_storage_fs", "!LOCAL", "files are local"),
    _r(ENGINE_FILE, "enable_mem_control", "false", "memory is always bounded"),
    _r(ENGINE_FILE, "openID_url", "!", "OpenID is not supported"),
    _r(ENGINE_FILE, "is_sync_enable", "true", "the one-way sync between stand-alone servers does not exist"),
    _r(ENGINE_FILE, "enable_mqtt_service", "true", "the MQTT broker is not built yet"),
    *_n(ENGINE_FILE, "binary and compact clients are both recognised", "rpc_thrift_compression_enable"),
    *_n(ENGINE_FILE, "every write is synced before it is acknowledged", "flush_wal_threshold", "force_wal_period_in_ms",
        "wal_buffer_size"),
    *_n(ENGINE_FILE, "the cluster's own key decides", "enable_auto_create_schema"),
    *_n(ENGINE_FILE, "late rows are kept", "enable_discard_out_of_order_data"),
    *_n(ENGINE_FILE, "a TTL is set for each storage group: SET TTL TO", "default_ttl"),
    *_n(ENGINE_FILE, "a bad column never spoils a row", "enable_partial_insert"),
    *_n(ENGINE_FILE, "partitioning is always on", "enable_partition"),
    *_n(
        ENGINE_FILE,
        "no counterpart in this engine",
        "thrift_init_buffer_size", "session_timeout_threshold", "influxdb_rpc_port", "multi_dir_strategy",
        "udf_root_dir", "trigger_root_dir", "tracing_dir", "index_root_dir", "virtual_storage_group_num",
        "avg_series_point_number_threshold", "batch_size", "seq_tsfile_size", "unseq_tsfile_size",
        "tsfile_size_threshold", "target_compaction_file_size", "enable_timed_flush_seq_memtable",
        "enable_timed_flush_unseq_memtable", "enable_timed_close_tsfile", "seq_memtable_flush_interval_in_ms",
        "concurrent_flush_thread", "tag_attribute_total_size", "tag_attribute_flush_interval", "mlog_buffer_size",
        "sync_mlog_period_in_ms", "enable_mtree_snapshot", "mtree_snapshot_interval",
        "mtree_snapshot_threshold_time", "write_read_schema_free_memory_proportion", "flush_proportion",
        "buffered_arrays_memory_proportion", "reject_proportion", "check_period_when_insert_blocked",
        "max_waiting_time_when_insert_blocked", "storage_group_report_threshold", "estimated_series_size",
        "io_task_queue_size_for_flushing", "primitive_array_size", "concurrent_query_thread",
        "default_fill_interval", "meta_data_cache_enable", "enable_last_cache",
        "chunk_timeseriesmeta_free_memory_proportion", "group_by_fill_cache_size_in_mb", "enable_external_sort",
        "external_sort_threshold", "compaction_strategy", "enable_unseq_compaction", "compaction_interval",
        "compaction_thread_num",
        "concurrent_compaction_thread", "default_boolean_encoding", "default_int32_encoding",
        "default_int64_encoding", "default_float_encoding", "default_double_encoding", "default_text_encoding",
        "compressor", "group_size_in_byte", "page_size_in_byte", "max_number_of_points_in_page", "value_encoder",
        "time_encoder", "max_string_length", "max_degree_of_index_node", "time_index_level",
        "authorizer_provider_class", "enable_metric_service", "metrics_port", "query_cache_size_in_metric",
        "enable_stat_monitor", "enable_monitor_series_write", "enable_performance_stat", "mqtt_host", "mqtt_port",
        "mqtt_handler_pool_size", "mqtt_payload_formatter", "mqtt_max_message_size", "sync_server_port",
        "ip_white_list", "enable_index", "concurrent_index_build_thread", "default_index_window_range",
        "upgrade_thread_num", "watermark_module_opened", "watermark_secret_key", "watermark_bit_string",
        "watermark_method", "udf_initial_byte_array_length_for_memory_control",
        "udf_memory_budget_in_mb", "udf_reader_transformer_collector_memory_proportion",
    ),
]  # fmt: skip

KEYS: dict[str, list[Key]] = {}
for _key in (*_CLUSTER, *_ENGINE):
    KEYS.setdefault(_key.name, []).append(_key)
