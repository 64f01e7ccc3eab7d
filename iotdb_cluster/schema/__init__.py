"""Paths and patterns, the tree of timeseries, tags and aliases, types of texts: values and pure functions."""

from __future__ import annotations

from iotdb_cluster.schema.inference import (
    InferenceRules,
    convert,
    convert_column,
    infer_type,
    insert_failure,
    unquote,
)
from iotdb_cluster.schema.javatext import java_map_json, java_text, java_texts, java_tree_order
from iotdb_cluster.schema.paths import (
    ROOT,
    PathPattern,
    check_measurement,
    check_series_path,
    check_storage_group_path,
    illegal_path,
    join_path,
    parent_path,
    path_does_not_exist,
    split_device,
    split_path,
    storage_group_for,
)
from iotdb_cluster.schema.series import (
    DEFAULT_COMPRESSOR,
    Alter,
    Series,
    SeriesSpec,
    TagFilter,
    check_spec,
    check_tags,
    check_type_and_encoding,
    default_encoding,
)
from iotdb_cluster.schema.snapshot import TreeSnapshot
from iotdb_cluster.schema.tree import SchemaTree

__all__ = [
    "DEFAULT_COMPRESSOR",
    "ROOT",
    "Alter",
    "InferenceRules",
    "PathPattern",
    "SchemaTree",
    "Series",
    "SeriesSpec",
    "TagFilter",
    "TreeSnapshot",
    "check_measurement",
    "check_series_path",
    "check_spec",
    "check_storage_group_path",
    "check_tags",
    "check_type_and_encoding",
    "convert",
    "convert_column",
    "default_encoding",
    "illegal_path",
    "infer_type",
    "insert_failure",
    "java_map_json",
    "java_text",
    "java_texts",
    "java_tree_order",
    "join_path",
    "parent_path",
    "path_does_not_exist",
    "split_device",
    "split_path",
    "storage_group_for",
    "unquote",
]
