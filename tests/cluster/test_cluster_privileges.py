"""Every RPC and every statement against every privilege: who lacks what it needs gets 602, and nothing has changed.

Users are made and changed through node 1, their calls go through the other nodes.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from iotdb_cluster.auth.privileges import (
    ALTERNATIVES,
    OPEN_OPERATIONS,
    OPERATION_PRIVILEGES,
    PATH_PRIVILEGES,
    Privilege,
)
from iotdb_cluster.rpc.calls import IGNORED, METHODS, NOT_SUPPORTED
from iotdb_cluster.rpc.inserts import HOT_CALLS
from iotdb_cluster.sql import ParseContext, parse
from iotdb_cluster.sql.statements.base import Statement
from iotdb_cluster.tools.cli_connection import Connection, Refused, Results, first_bad

PRIVILEGES = list(Privilege)
SETUP = [
    "SET STORAGE GROUP TO root.auth",
    "CREATE TIMESERIES root.auth.d.s WITH DATATYPE=FLOAT",
    "CREATE TIMESERIES root.auth.d.gone WITH DATATYPE=FLOAT",
    "INSERT INTO root.auth.d(timestamp, s) VALUES (1, 1.5)",
    "CREATE USER victim 'password'",
    "CREATE USER victim2 'password'",
    "CREATE ROLE victim",
    "CREATE ROLE victim2",
    "CREATE USER reader 'password'",
    "CREATE ROLE reading",
    "GRANT ROLE reading PRIVILEGES 'READ_TIMESERIES' ON root.auth",
    "GRANT reading TO reader",
    "GRANT USER reader PRIVILEGES 'READ_TIMESERIES' ON root.auth",
]
FACTS = [
    "SHOW STORAGE GROUP",
    "SHOW TIMESERIES",
    "SHOW ALL TTL",
    "SELECT * FROM root",
    "LIST USER",
    "LIST ROLE",
    "LIST ALL ROLE OF USER victim",
    "LIST USER PRIVILEGES victim",
    "LIST ROLE PRIVILEGES victim",
]


def connect(port: int, user: str = "root", password: str = "root") -> Connection:
    connection = Connection("127.0.0.1", port)
    connection.open(user, password, "UTC")
    return connection


def cells(results: Results) -> list[Any]:
    return [[one.cells.tolist() for one in page.columns] for page in results.pages()]


def code_of(connection: Connection, row: Any) -> int:
    """The status of a row's call or statement; 0 for a table without rows."""
    if row.call is None:
        try:
            found = connection.execute(row.text)
        except Refused as refused:
            return refused.code
        return 200 if isinstance(found, str) or cells(found) else 0
    answer = row.call(connection)
    bad = first_bad(getattr(answer, "status", answer)) if hasattr(answer, "status") or hasattr(answer, "code") else None
    return 200 if bad is None else int(bad.code)


class Users:
    """Connections of users that have one privilege each, spread over the nodes that are not asked for changes."""

    def __init__(self, root: Connection, ports: list[int], ends: ExitStack) -> None:
        self.root = root
        self._ports = ports
        self.several = len(ports) > 1
        self._ends = ends
        self._made = 0

    def make(self, name: str, *privileges: str, on: str = "root") -> Connection:
        self.root.execute(f"CREATE USER {name} 'password'")
        if privileges:
            quoted = ", ".join(f"'{privilege}'" for privilege in privileges)
            self.root.execute(f"GRANT USER {name} PRIVILEGES {quoted} ON {on}")
        self._made += 1
        connection = connect(self._ports[self._made % len(self._ports)], name, "password")
        self._ends.callback(connection.close)
        return connection


@pytest.fixture(scope="module", params=[{"nodes": 3}, {"nodes": 1}], ids=["3-nodes", "1-node"])
def users(request: pytest.FixtureRequest, processes: ModuleType, tmp_path_factory: Any) -> Iterator[Users]:
    cluster = processes.Processes(tmp_path_factory.mktemp("privileges"), **request.param)
    with cluster, ExitStack() as ends:
        root = connect(cluster.ports[0])
        ends.callback(root.close)
        for text in SETUP:
            root.execute(text)
        yield Users(root, cluster.ports[1:] or cluster.ports, ends)
    assert cluster.complaints() == []


def facts(root: Connection) -> list[Any]:
    found = [cells(root.execute(text)) for text in FACTS]  # type: ignore[arg-type]
    return [*found, root.properties().isReadOnly]


def serves(privilege: Privilege, row: Any) -> bool:
    """Whether who has this privilege on root may do what the row does."""
    if row.needs[0] in ("everybody", "administrator"):
        return row.needs[0] == "everybody"
    return privilege is Privilege.ALL or privilege.name in row.needs


# --- the table is whole -----------------------------------------------------------------------------------------------


def statement_classes() -> set[str]:
    found: dict[str, type] = {}
    waiting = [Statement]
    while waiting:
        for one in waiting.pop().__subclasses__():
            found[one.__name__] = one
            waiting.append(one)
    return {name for name in found if not name.startswith("_")}


def test_every_statement_and_every_rpc_has_a_row(rows: ModuleType) -> None:
    assert {row.kind for row in rows.STATEMENTS} == statement_classes()
    assert {row.kind for row in rows.RPCS} == (set(METHODS) | set(HOT_CALLS) | set(IGNORED)) - set(NOT_SUPPORTED)


def test_the_rows_are_what_they_say_and_agree_with_the_programs_table(rows: ModuleType) -> None:
    operations = {"CREATE_TEMPLATE", "SET_SCHEMA_TEMPLATE", "CREATE_MULTI_TIMESERIES"}  # of typed calls alone
    for row in rows.STATEMENTS:
        statement = parse(row.text, ParseContext())
        assert type(statement).__name__ == row.kind
        operation = statement.operation
        operations.add(operation)
        if row.needs == ("everybody",):
            assert operation in OPEN_OPERATIONS, row.name
        elif row.needs == ("administrator",):
            assert OPERATION_PRIVILEGES[operation] is None, row.name
        else:
            privilege = OPERATION_PRIVILEGES[operation]
            assert privilege is not None, row.name
            wanted = {privilege.name, ALTERNATIVES.get(privilege, privilege).name}
            assert set(row.needs) == wanted, row.name
    unused = {"UPDATE", "DESCRIBE", "DROP_INDEX", "QUERY_INDEX", "GROUP_BY_FILL"}  # rows of their kind are there
    assert set(OPERATION_PRIVILEGES) | OPEN_OPERATIONS == operations | unused


# --- denied -----------------------------------------------------------------------------------------------------------


def test_who_lacks_the_privilege_is_refused_and_changes_nothing(users: Users, rows: ModuleType) -> None:
    table = [*rows.STATEMENTS, *rows.RPCS]
    before = facts(users.root)
    tried = PRIVILEGES if users.several else PRIVILEGES[::5]  # all of them together: the next test
    for privilege in tried:
        name = f"has_{privilege.name.lower()}"
        user = users.make(name, privilege.name)
        for row in table:
            if serves(privilege, row):
                continue
            code = code_of(user, row)
            assert code == (0 if row.empty else 602), f"{row.name} by a user who has {privilege.name}: {code}"
    after = facts(users.root)
    made = [f"has_{privilege.name.lower()}".encode() for privilege in tried]
    names = FACTS.index("LIST USER")
    assert sorted(before[names][0][0] + made) == after[names][0][0]
    before[names] = after[names]
    assert after == before


def test_all_other_privileges_together_do_not_help(users: Users, rows: ModuleType) -> None:
    before = facts(users.root)
    needs = sorted({row.needs for row in rows.STATEMENTS if row.needs[0] != "everybody"})
    for number, need in enumerate(needs):
        others = [one.name for one in PRIVILEGES if one.name not in need and one is not Privilege.ALL]
        user = users.make(f"lacks_{number}", *others)
        for row in [*rows.STATEMENTS, *rows.RPCS]:
            if row.needs == need:
                assert code_of(user, row) == (0 if row.empty else 602), f"{row.name} without {need}"
        users.root.execute(f"DROP USER lacks_{number}")
    assert facts(users.root) == before


def test_a_privilege_on_another_path_is_none(users: Users, rows: ModuleType) -> None:
    before = facts(users.root)
    named = {privilege.name for privilege in PATH_PRIVILEGES}
    user = users.make("elsewhere", *sorted(named), on="root.authority")
    for row in [*rows.STATEMENTS, *rows.RPCS]:
        if named & set(row.needs):
            assert code_of(user, row) == 602, row.name
    users.root.execute("DROP USER elsewhere")
    assert facts(users.root) == before


def test_a_dropped_users_session_may_do_nothing(users: Users, rows: ModuleType) -> None:
    user = users.make("dropped", "ALL")
    assert code_of(user, next(row for row in rows.STATEMENTS if row.name == "Select")) == 200
    users.root.execute("DROP USER dropped")
    for row in [*rows.STATEMENTS, *rows.RPCS]:
        if row.needs != ("everybody",):
            assert code_of(user, row) == (0 if row.empty else 602), row.name


# --- allowed ----------------------------------------------------------------------------------------------------------


def test_who_has_just_the_privilege_is_not_refused(users: Users, rows: ModuleType) -> None:
    """Also through a role, from the moment that node 1 has answered."""
    needs = sorted({name for row in rows.STATEMENTS for name in row.needs} - {"everybody", "administrator"})
    for number, need in enumerate(needs):
        user = users.make(f"allowed_{number}")
        users.root.execute(f"CREATE ROLE holds_{number}")
        users.root.execute(f"GRANT ROLE holds_{number} PRIVILEGES '{need}' ON root")
        users.root.execute(f"GRANT holds_{number} TO allowed_{number}")
        for row in [*rows.STATEMENTS, *rows.RPCS]:
            if need in row.needs:
                assert code_of(user, row) != (0 if row.empty else 602), f"{row.name} with {need}"
        users.root.execute(f"REVOKE holds_{number} FROM allowed_{number}")
        for row in rows.STATEMENTS:
            if need in row.needs:
                assert code_of(user, row) == (0 if row.empty else 602), f"{row.name} after {need} was revoked"
    own = users.make("own_password")
    own.execute("ALTER USER own_password SET PASSWORD 'changed'")
    for row in rows.STATEMENTS:
        if row.needs == ("everybody",):
            assert code_of(own, row) != 602, row.name
