"""Property files: what each line does, and what is said of lines that do nothing."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.cluster.configuration import BadConfiguration, PropertyFile, load, parse_properties
from iotdb_cluster.cluster.keys import CLUSTER_FILE, ENGINE_FILE, KEYS, RELOADED
from iotdb_cluster.cluster.reloading import value_of
from iotdb_cluster.cluster.settings import NodeAddress, parse_seed
from iotdb_cluster.columns import DataType


def of(text: str, engine: str = "", **overrides: str):
    files = [PropertyFile(CLUSTER_FILE, "c.properties", text), PropertyFile(ENGINE_FILE, "e.properties", engine)]
    return load(files, overrides, "/base")


def test_defaults_are_those_of_the_documents() -> None:
    settings = of("").settings
    assert settings.address == NodeAddress("127.0.0.1", 9003, 40010, 55560)
    assert (settings.consistency, settings.replication) == ("strong", 3)
    assert (settings.heartbeat_interval_ms, settings.election_timeout_ms) == (100, 500)
    assert [seed.meta_port for seed in settings.seeds] == [9003, 9005, 9007]
    assert settings.wal_path == "/base/data/wal"
    assert of("", "wal_dir=data/wal\ndata_dirs=data/a,/b").settings.wal_path == "/base/data/wal"


def test_command_line_wins_over_the_file() -> None:
    settings = of("internal_meta_port=1111\ncluster_rpc_port = 2222 ", internal_meta_port="3333").settings
    assert (settings.address.meta_port, settings.address.client_port) == (3333, 2222)


def test_renamed_keys_count_where_the_first_name_is_absent() -> None:
    assert of("internal_ip=10.0.0.1", "rpc_port=6667").settings.address == NodeAddress("10.0.0.1", 9003, 40010, 6667)
    both = of("internal_ip=10.0.0.1\ncluster_rpc_ip=10.0.0.2\ncluster_rpc_port=1", "rpc_port=6667").settings
    assert (both.address.host, both.address.client_port) == ("10.0.0.2", 1)


def test_values_with_units() -> None:
    settings = of("", "partition_interval=60\nmemtable_memory_mb=7\ninteger_string_infer_type=int64\n").settings
    assert settings.partition_interval_ms == 60_000
    assert settings.memtable_bytes_max == 7 * 1024 * 1024
    assert settings.inference.integer is DataType.INT64


@pytest.mark.parametrize(
    ("cluster", "engine", "said"),
    [
        ("internal_meta_port=x", "", "c.properties:1: internal_meta_port=x: a whole number"),
        ("\n\ninternal_meta_port=70000", "", "c.properties:3: internal_meta_port=70000: a port"),
        ("consistency_level=eventual", "", "one of strong, mid, weak"),
        ("is_enable_raft_log_persistence=false", "", "would lose acknowledged writes"),
        ("multi_raft_factor=2", "", "multi_raft_factor=2 is refused"),
        ("seed_nodes=a:b", "", "host:meta_port"),
        ("seed_nodes=h:1,h:1", "", "twice"),
        ("", "enable_wal=false", "e.properties:1: enable_wal=false is refused"),
        ("", "tsfile_storage_fs=HDFS", "files are local"),
        ("", "admin_name=abc", "admin_name=abc: a name of at least 4 characters"),
    ],
)
def test_refusals_name_key_value_file_and_line(cluster: str, engine: str, said: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        of(cluster, engine)
    assert said in str(refused.value)


def test_notices_never_silence() -> None:
    notices = of("use_batch_in_catch_up=true\nheartbeat_intervall_ms=5\nmulti_raft_factor=1").notices
    assert len(notices) == 2
    assert "no effect" in notices[0]
    assert "did you mean heartbeat_interval_ms?" in notices[1]


def test_properties_syntax() -> None:
    text = "# c\n! c\n a = b \nwin=c:\\\\data\nlong=x,\\\n   y\nempty=\ncolon: v"
    assert parse_properties(text) == [
        (3, "a", "b"),
        (4, "win", "c:\\data"),
        (5, "long", "x,y"),
        (7, "empty", ""),
        (8, "colon", "v"),
    ]


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadConfiguration):
        of(text)


def test_seed_forms() -> None:
    assert parse_seed(" node-1.plant:9003:40010:55560 ") == NodeAddress("node-1.plant", 9003, 40010, 55560)
    assert parse_seed("h:9003") == NodeAddress("h", 9003, 0, 0)
    for wrong in ("", "h", "h:1:2", "h:0", ":1", "h:1:2:3:4"):
        with pytest.raises(ValueError, match="seed node"):
            parse_seed(wrong)


def test_every_honoured_key_names_a_setting() -> None:
    for keys in KEYS.values():
        for key in keys:
            assert (key.fate in ("honoured", "renamed")) == bool(key.setting), key.name
            assert key.fate != "refused" or key.refuse, key.name


def test_hot_keys_are_settings_that_are_no_part_of_what_a_cluster_is_founded_on() -> None:
    settings = of("").settings
    hot = {key.setting for keys in KEYS.values() for key in keys if key.reload}
    assert hot == RELOADED
    assert not RELOADED & set(settings.fixed())
    for setting in RELOADED:
        assert value_of(settings, setting) is not None
