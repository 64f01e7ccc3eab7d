"""The IDL against the stock client's generated code: every id, type and required flag."""

from __future__ import annotations

from typing import Any

import pytest

from iotdb_cluster.rpc import idl


def test_where_it_lies() -> None:
    assert sorted(path.name for path in idl.directory().glob("*.thrift")) == ["client.thrift", "node.thrift"]
    assert idl.node().Answer.thrift_spec[3] == (18, "body", False)


def shape(kind: int, inner: Any) -> Any:
    """A field's type, comparable between the two libraries."""
    kind = 11 if kind == 18 else kind
    if kind == 12:
        return (12, inner[0].__name__ if isinstance(inner, list) else inner.__name__)
    if kind in (14, 15):
        return (kind, element(inner))
    if kind == 13:
        return (kind, element(inner[0]), element(inner[1]))
    return kind


def element(inner: Any) -> Any:
    return shape(inner, None) if isinstance(inner, int) else shape(inner[0], inner[1])


def stock_shape(kind: int, arguments: Any) -> Any:
    if kind == 12:
        return (12, arguments[0].__name__)
    if kind in (14, 15):
        return (kind, stock_shape(arguments[0], arguments[1]))
    if kind == 13:
        return (kind, stock_shape(arguments[0], arguments[1]), stock_shape(arguments[2], arguments[3]))
    return kind


def test_structs_of_the_stock_client() -> None:
    pytest.importorskip("iotdb")
    from iotdb.thrift.rpc import ttypes

    compared = 0
    for name, stock in vars(ttypes).items():
        if not (isinstance(stock, type) and hasattr(stock, "thrift_spec")):
            continue
        ours = getattr(idl.client(), name).thrift_spec
        for field in stock.thrift_spec:
            if field is None or name == "TSCreateSchemaTemplateReq":
                continue
            number, kind, field_name, arguments = field[:4]
            spec = ours[number]
            inner = spec[2] if len(spec) > 3 else None
            assert (spec[1], shape(spec[0], inner)) == (field_name, stock_shape(kind, arguments)), (name, number)
            compared += 1
    assert compared > 130


def test_methods_of_the_stock_client() -> None:
    pytest.importorskip("iotdb")
    from iotdb.thrift.rpc import TSIService

    methods = {name for name in vars(TSIService.Iface) if not name.startswith("_")}
    assert methods <= set(idl.client().TSIService.thrift_services)
