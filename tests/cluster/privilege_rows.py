"""What each RPC and each statement needs: one row for every one that there is, which the test demands.

A need is the name of a privilege, ADMIN (nobody but the administrator) or OPEN (everybody).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.rpc.idl import client
from iotdb_cluster.tools.cli_connection import Connection

ADMIN, OPEN = "administrator", "everybody"
SG = "root.auth"


@dataclass(frozen=True)
class Row:
    """`needs`: names of privileges of which one suffices, or (ADMIN,) or (OPEN,); `empty`: lacking is no refusal."""

    name: str
    needs: tuple[str, ...]
    text: str = ""  # of a statement
    call: Callable[[Connection], Any] | None = None  # of an RPC: its answer
    empty: bool = False

    @property
    def kind(self) -> str:
        """The class of the statement, or the method."""
        return self.name.partition("/")[0]


def _statement(name: str, need: str, text: str) -> Row:
    return Row(name, tuple(need.split("|")), text)


def _list(name: str, need: str, text: str) -> Row:
    return Row(name, (need,), text, empty=True)


def _grants(kind: str, verb: str, preposition: str) -> Row:
    text = f"{verb} {kind} victim PRIVILEGES 'INSERT_TIMESERIES' ON root.x"
    return _statement(f"PrivilegeChange/{verb} {kind}", f"{verb}_{kind}_PRIVILEGE", text + preposition)


STATEMENTS: list[Row] = [
    _statement("Insert", "INSERT_TIMESERIES", f"INSERT INTO {SG}.d(timestamp, s) VALUES (7, 7)"),
    _statement("Delete", "DELETE_TIMESERIES", f"DELETE FROM {SG}.d.s WHERE time <= 1"),
    _statement("DeletePartition", ADMIN, f"DELETE PARTITION {SG} 0"),
    _statement("DeleteTimeseries", "DELETE_TIMESERIES", f"DELETE TIMESERIES {SG}.d.gone"),
    _statement("DeleteStorageGroups", ADMIN, f"DELETE STORAGE GROUP {SG}"),
    _statement("SetStorageGroup", "SET_STORAGE_GROUP", "SET STORAGE GROUP TO root.made"),
    _statement("CreateTimeseries", "CREATE_TIMESERIES", f"CREATE TIMESERIES {SG}.d.made WITH DATATYPE=INT32"),
    _statement("AlterTimeseries", ADMIN, f"ALTER TIMESERIES {SG}.d.s ADD TAGS a=b"),
    _statement("SetTtl", ADMIN, f"SET TTL TO {SG} 100000000000000"),
    _statement("UnsetTtl", ADMIN, f"UNSET TTL TO {SG}"),
    _statement("Flush", ADMIN, "FLUSH"),
    _statement("Merge", ADMIN, "MERGE"),
    _statement("Merge/full", ADMIN, "FULL MERGE"),
    _statement("ClearCache", ADMIN, "CLEAR CACHE"),
    _statement("CreateSnapshot", ADMIN, "CREATE SNAPSHOT FOR SCHEMA"),
    _statement("SetSystemMode", ADMIN, "SET SYSTEM TO READONLY"),
    _statement("Kill", ADMIN, "KILL QUERY"),
    _statement("Tracing", ADMIN, "TRACING ON"),
    _statement("LoadConfiguration", ADMIN, "LOAD CONFIGURATION"),
    _statement("LoadConfiguration/global", ADMIN, "LOAD CONFIGURATION -GLOBAL"),
    _statement("LoadFiles", ADMIN, "LOAD '/x.tsfile'"),
    _statement("LoadTimeseries", ADMIN, f"LOAD TIMESERIES 'x.csv' {SG}"),
    _statement("RemoveFile", ADMIN, "REMOVE '/x.tsfile'"),
    _statement("MoveFile", ADMIN, "MOVE '/x.tsfile' '/y'"),
    _statement("CreateFunction", "CREATE_FUNCTION", "CREATE FUNCTION f AS 'a.B'"),
    _statement("DropFunction", "DROP_FUNCTION", "DROP FUNCTION f"),
    _statement("CreateTrigger", "CREATE_TRIGGER", f"CREATE TRIGGER t BEFORE INSERT ON {SG}.d.s AS 'a.B'"),
    _statement("DropTrigger", "DROP_TRIGGER", "DROP TRIGGER t"),
    _statement("StartTrigger", "START_TRIGGER", "START TRIGGER t"),
    _statement("StopTrigger", "STOP_TRIGGER", "STOP TRIGGER t"),
    _statement("Unsupported/index", OPEN, f"CREATE INDEX ON {SG}.d WITH INDEX=kv"),
    _statement("Unsupported/metadata", OPEN, "SHOW METADATA"),
    # --- users
    _statement("CreateUser", "CREATE_USER", "CREATE USER stranger 'password'"),
    _statement("DropUser", "DELETE_USER", "DROP USER victim2"),
    _statement("AlterUser", "MODIFY_PASSWORD", "ALTER USER victim SET PASSWORD 'changed'"),
    _statement("CreateRole", "CREATE_ROLE", "CREATE ROLE made_role"),
    _statement("DropRole", "DELETE_ROLE", "DROP ROLE victim2"),
    *(_grants(kind, verb, "") for kind in ("USER", "ROLE") for verb in ("GRANT", "REVOKE")),
    _statement("GrantRoleToUser", "GRANT_USER_ROLE|GRANT_ROLE_PRIVILEGE", "GRANT victim TO victim"),
    _statement("RevokeRoleFromUser", "REVOKE_USER_ROLE", "REVOKE victim FROM victim"),
    _statement("GrantWatermark", ADMIN, "GRANT WATERMARK_EMBEDDING TO victim"),
    _statement("RevokeWatermark", ADMIN, "REVOKE WATERMARK_EMBEDDING FROM victim"),
    _list("ListUsers", "LIST_USER", "LIST USER"),
    _list("ListRoles", "LIST_ROLE", "LIST ROLE"),
    _list("ListUserPrivileges", "LIST_USER", "LIST USER PRIVILEGES reader"),
    _list("ListUserPrivileges/on", "LIST_USER", f"LIST PRIVILEGES USER reader ON {SG}"),
    _list("ListRolePrivileges", "LIST_ROLE", "LIST ROLE PRIVILEGES reading"),
    _list("ListRolesOfUser", "LIST_USER", "LIST ALL ROLE OF USER reader"),
    _list("ListUsersOfRole", "LIST_ROLE", "LIST ALL USER OF ROLE reading"),
    # --- queries
    _statement("Select", "READ_TIMESERIES", f"SELECT s FROM {SG}.d"),
    _statement("Select/unknown", "READ_TIMESERIES", f"SELECT nothing FROM {SG}.d"),
    _statement("Select/wildcard", "READ_TIMESERIES", "SELECT * FROM root"),
    _statement("Select/filter", "READ_TIMESERIES", f"SELECT nothing FROM {SG}.d WHERE s > 0"),
    _statement("Select/aggregation", "READ_TIMESERIES", f"SELECT count(s) FROM {SG}.d"),
    _statement("Select/windows", "READ_TIMESERIES", f"SELECT count(s) FROM {SG}.d GROUP BY ([0, 9), 3ms)"),
    _statement("Select/level", "READ_TIMESERIES", f"SELECT count(s) FROM {SG}.d GROUP BY LEVEL = 1"),
    _statement("Select/fill", "READ_TIMESERIES", f"SELECT s FROM {SG}.d WHERE time = 3 FILL(float[previous, 1m])"),
    _statement("Select/last", "READ_TIMESERIES", f"SELECT LAST s FROM {SG}.d"),
    _statement("Select/function", "READ_TIMESERIES", f"SELECT sin(s) FROM {SG}.d"),
    _statement("Select/devices", "READ_TIMESERIES", f"SELECT s FROM {SG}.d ALIGN BY DEVICE"),
    _statement("Select/not aligned", "READ_TIMESERIES", f"SELECT s FROM {SG}.d DISABLE ALIGN"),
    # --- what everybody sees
    _statement("ShowTimeseries", OPEN, "SHOW TIMESERIES"),
    _statement("ShowTimeseries/latest", OPEN, "SHOW LATEST TIMESERIES"),
    _statement("ShowStorageGroups", OPEN, "SHOW STORAGE GROUP"),
    _statement("ShowDevices", OPEN, "SHOW DEVICES"),
    _statement("ShowChildPaths", OPEN, "SHOW CHILD PATHS root"),
    _statement("ShowChildNodes", OPEN, "SHOW CHILD NODES root"),
    _statement("ShowTtl", OPEN, "SHOW ALL TTL"),
    _statement("ShowVersion", OPEN, "SHOW VERSION"),
    _statement("ShowFunctions", OPEN, "SHOW FUNCTIONS"),
    _statement("ShowTriggers", OPEN, "SHOW TRIGGERS"),
    _statement("ShowLockInfo", OPEN, "SHOW LOCK INFO root"),
    _statement("ShowMerge", OPEN, "SHOW MERGE"),
    _statement("ShowFlushTaskInfo", OPEN, "SHOW FLUSH TASK INFO"),
    _statement("ShowQueryProcesslist", OPEN, "SHOW QUERY PROCESSLIST"),
    _statement("CountTimeseries", OPEN, "COUNT TIMESERIES root"),
    _statement("CountDevices", OPEN, "COUNT DEVICES root"),
    _statement("CountNodes", OPEN, "COUNT NODES root LEVEL=1"),
    _statement("CountStorageGroups", OPEN, "COUNT STORAGE GROUP root"),
]


def _rpc(name: str, need: str, make: Callable[[Any, Connection], tuple[Any, ...]]) -> Row:
    method = name.partition("/")[0]
    return Row(
        name, tuple(need.split("|")), call=lambda connection: connection.call(method, *make(client(), connection))
    )


def _sql(name: str, need: str, text: str) -> Row:
    return _rpc(name, need, lambda idl, c: (idl.TSExecuteStatementReq(c.session, text, c.statement, 100),))


D, ONE = f"{SG}.d", struct.pack(">bf", 3, 1.5)  # a record of one FLOAT
FLOATS, TIMES = struct.pack(">f", 1.5), struct.pack(">q", 7)


def _inserts(prefix: str, need: str) -> list[Row]:
    return [
        _rpc(f"{prefix}Record", need, lambda idl, c: (idl.TSInsertRecordReq(c.session, D, ["s"], ONE, 7),)),
        _rpc(f"{prefix}Records", need, lambda idl, c: (idl.TSInsertRecordsReq(c.session, [D], [["s"]], [ONE], [7]),)),
        _rpc(
            f"{prefix}RecordsOfOneDevice",
            need,
            lambda idl, c: (idl.TSInsertRecordsOfOneDeviceReq(c.session, D, [["s"]], [ONE], [7]),),
        ),
        _rpc(
            f"{prefix}Tablet", need, lambda idl, c: (idl.TSInsertTabletReq(c.session, D, ["s"], FLOATS, TIMES, [3], 1),)
        ),
        _rpc(
            f"{prefix}Tablets",
            need,
            lambda idl, c: (idl.TSInsertTabletsReq(c.session, [D], [["s"]], [FLOATS], [TIMES], [[3]], [1]),),
        ),
        _rpc(
            f"{prefix}StringRecord",
            need,
            lambda idl, c: (idl.TSInsertStringRecordReq(c.session, D, ["s"], ["1.5"], 7),),
        ),
        _rpc(
            f"{prefix}StringRecords",
            need,
            lambda idl, c: (idl.TSInsertStringRecordsReq(c.session, [D], [["s"]], [["1.5"]], [7]),),
        ),
    ]


_MADE = f"{SG}.d.made"
RPCS: list[Row] = [
    *_inserts("insert", "INSERT_TIMESERIES"),
    *_inserts("testInsert", OPEN),
    _sql("executeStatement", "DELETE_TIMESERIES", f"DELETE FROM {SG}.d.s WHERE time <= 1"),
    _sql("executeStatement/query", "READ_TIMESERIES", f"SELECT s FROM {SG}.d"),
    _sql("executeQueryStatement", "READ_TIMESERIES", f"SELECT s FROM {SG}.d"),
    _sql("executeUpdateStatement", "DELETE_TIMESERIES", f"DELETE FROM {SG}.d.s WHERE time <= 1"),
    _rpc(
        "executeBatchStatement",
        "CREATE_TIMESERIES",
        lambda idl, c: (
            idl.TSExecuteBatchStatementReq(c.session, [f"CREATE TIMESERIES {_MADE} WITH DATATYPE=INT32", "FLUSH"]),
        ),
    ),
    _rpc(
        "executeRawDataQuery",
        "READ_TIMESERIES",
        lambda idl, c: (idl.TSRawDataQueryReq(c.session, [f"{SG}.d.s"], 100, 0, 9, c.statement),),
    ),
    _rpc("setStorageGroup", "SET_STORAGE_GROUP", lambda _, c: (c.session, "root.made")),
    _rpc("deleteStorageGroups", ADMIN, lambda _, c: (c.session, [SG])),
    _rpc("deleteTimeseries", "DELETE_TIMESERIES", lambda _, c: (c.session, [f"{SG}.d.gone"])),
    _rpc("deleteData", "DELETE_TIMESERIES", lambda idl, c: (idl.TSDeleteDataReq(c.session, [f"{SG}.d.s"], 0, 1),)),
    _rpc(
        "createTimeseries", "CREATE_TIMESERIES", lambda idl, c: (idl.TSCreateTimeseriesReq(c.session, _MADE, 1, 0, 0),)
    ),
    _rpc(
        "createMultiTimeseries",
        ADMIN,
        lambda idl, c: (idl.TSCreateMultiTimeseriesReq(c.session, [_MADE], [1], [0], [0]),),
    ),
    _rpc(
        "createSchemaTemplate",
        ADMIN,
        lambda idl, c: (idl.TSCreateSchemaTemplateReq(c.session, "t", ["s"], [["s"]], [[1]], [[0]], [0]),),
    ),
    _rpc("setSchemaTemplate", ADMIN, lambda idl, c: (idl.TSSetSchemaTemplateReq(c.session, "t", SG),)),
    # --- sessions, and what everybody sees
    _rpc("openSession", OPEN, lambda idl, _: (idl.TSOpenSessionReq(2, "UTC", "reader", "password"),)),
    _rpc("closeSession", OPEN, lambda idl, _: (idl.TSCloseSessionReq(-1),)),
    _rpc("getTimeZone", OPEN, lambda _, c: (c.session,)),
    _rpc("setTimeZone", OPEN, lambda idl, c: (idl.TSSetTimeZoneReq(c.session, "UTC"),)),
    _rpc("getProperties", OPEN, lambda _, __: ()),
    _rpc("requestStatementId", OPEN, lambda _, c: (c.session,)),
    _rpc("fetchResults", OPEN, lambda idl, c: (idl.TSFetchResultsReq(c.session, "", 100, -1, True),)),
    _rpc("closeOperation", OPEN, lambda idl, c: (idl.TSCloseOperationReq(c.session, -1, c.statement),)),
    _rpc("cancelOperation", OPEN, lambda idl, c: (idl.TSCancelOperationReq(c.session, -1),)),
    _rpc("fetchMetadata", OPEN, lambda idl, c: (idl.TSFetchMetadataReq(c.session, "ALL_COLUMNS", "root"),)),
]
