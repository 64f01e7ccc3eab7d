"""A client's wish for a series, checked: codes, the pair of type and encoding, tags."""

from __future__ import annotations

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.handler import SeriesRequest
from iotdb_cluster.schema import SeriesSpec, check_spec, default_encoding
from iotdb_cluster.sql import CreateTimeseries

__all__ = ["series_spec", "statement_spec"]


def series_spec(request: SeriesRequest) -> SeriesSpec:
    """From a typed call; 303 where a code or the pair of type and encoding is not legal, 411 for a key used twice."""
    try:
        kind, encoding = DataType(request.type), Encoding(request.encoding)
        compressor = Compressor(request.compressor)
    except ValueError as error:
        raise CallerError(Status.METADATA_ERROR, f"{request.path}: {error}") from None
    spec = SeriesSpec(
        request.path,
        kind,
        encoding,
        compressor,
        request.alias or None,
        dict(request.tags or {}),
        dict(request.attributes or {}),
        {key.lower(): value for key, value in (request.props or {}).items()},
    )
    return _checked(spec)


def statement_spec(statement: CreateTimeseries) -> SeriesSpec:
    """From SQL; what is left out takes the type's default."""
    encoding = statement.encoding
    spec = SeriesSpec(
        statement.path,
        statement.data_type,
        default_encoding(statement.data_type) if encoding is None else encoding,
        Compressor.SNAPPY if statement.compressor is None else statement.compressor,
        statement.alias,
        dict(statement.tags),
        dict(statement.attributes),
        {key.lower(): value for key, value in statement.properties},
    )
    return _checked(spec)


def _checked(spec: SeriesSpec) -> SeriesSpec:
    check_spec(spec)
    return spec
