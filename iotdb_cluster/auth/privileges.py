"""The privileges, and which of them an operation needs."""

from __future__ import annotations

from enum import IntEnum

from iotdb_cluster.errors import CallerError, Status

__all__ = [
    "ALTERNATIVES",
    "OPEN_OPERATIONS",
    "OPERATION_PRIVILEGES",
    "PATH_PRIVILEGES",
    "Privilege",
    "no_permission",
    "privilege_of",
]


class Privilege(IntEnum):
    """In the order in which they are listed. The numbers are in snapshots: never reuse one."""

    SET_STORAGE_GROUP = 0
    INSERT_TIMESERIES = 1
    UPDATE_TIMESERIES = 2
    READ_TIMESERIES = 3
    CREATE_TIMESERIES = 4
    DELETE_TIMESERIES = 5
    CREATE_USER = 6
    DELETE_USER = 7
    MODIFY_PASSWORD = 8
    LIST_USER = 9
    GRANT_USER_PRIVILEGE = 10
    REVOKE_USER_PRIVILEGE = 11
    GRANT_USER_ROLE = 12
    REVOKE_USER_ROLE = 13
    CREATE_ROLE = 14
    DELETE_ROLE = 15
    LIST_ROLE = 16
    GRANT_ROLE_PRIVILEGE = 17
    REVOKE_ROLE_PRIVILEGE = 18
    CREATE_FUNCTION = 19
    DROP_FUNCTION = 20
    CREATE_TRIGGER = 21
    DROP_TRIGGER = 22
    START_TRIGGER = 23
    STOP_TRIGGER = 24
    ALL = 1000


# These belong to a path; the others ignore it and stand under root.
PATH_PRIVILEGES = frozenset(Privilege(number) for number in range(6))

# What an operation (by the name that a refusal shows) needs; None: the administrator alone. What stands neither here
# nor in OPEN_OPERATIONS is the administrator's alone. A user may always change their own password, and the LIST
# operations show nothing where the privilege is missing.
OPERATION_PRIVILEGES: dict[str, Privilege | None] = {
    "SET_STORAGE_GROUP": Privilege.SET_STORAGE_GROUP,
    "DELETE_STORAGE_GROUP": None,
    "CREATE_TIMESERIES": Privilege.CREATE_TIMESERIES,
    "CREATE_MULTI_TIMESERIES": None,
    "ALTER_TIMESERIES": None,
    "DELETE_TIMESERIES": Privilege.DELETE_TIMESERIES,
    "DELETE": Privilege.DELETE_TIMESERIES,
    "INSERT": Privilege.INSERT_TIMESERIES,
    "QUERY": Privilege.READ_TIMESERIES,
    "LAST": Privilege.READ_TIMESERIES,
    "UDTF": Privilege.READ_TIMESERIES,
    "AGGREGATION": Privilege.READ_TIMESERIES,
    "GROUPBYTIME": Privilege.READ_TIMESERIES,
    "GROUP_BY_FILL": Privilege.READ_TIMESERIES,
    "FILL": Privilege.READ_TIMESERIES,
    "CREATE_USER": Privilege.CREATE_USER,
    "DELETE_USER": Privilege.DELETE_USER,
    "MODIFY_PASSWORD": Privilege.MODIFY_PASSWORD,
    "LIST_USER": Privilege.LIST_USER,
    "LIST_USER_PRIVILEGE": Privilege.LIST_USER,
    "LIST_USER_ROLES": Privilege.LIST_USER,
    "GRANT_USER_PRIVILEGE": Privilege.GRANT_USER_PRIVILEGE,
    "REVOKE_USER_PRIVILEGE": Privilege.REVOKE_USER_PRIVILEGE,
    "GRANT_USER_ROLE": Privilege.GRANT_USER_ROLE,
    "REVOKE_USER_ROLE": Privilege.REVOKE_USER_ROLE,
    "CREATE_ROLE": Privilege.CREATE_ROLE,
    "DELETE_ROLE": Privilege.DELETE_ROLE,
    "LIST_ROLE": Privilege.LIST_ROLE,
    "LIST_ROLE_PRIVILEGE": Privilege.LIST_ROLE,
    "LIST_ROLE_USERS": Privilege.LIST_ROLE,
    "GRANT_ROLE_PRIVILEGE": Privilege.GRANT_ROLE_PRIVILEGE,
    "REVOKE_ROLE_PRIVILEGE": Privilege.REVOKE_ROLE_PRIVILEGE,
    "CREATE_FUNCTION": Privilege.CREATE_FUNCTION,
    "DROP_FUNCTION": Privilege.DROP_FUNCTION,
    "CREATE_TRIGGER": Privilege.CREATE_TRIGGER,
    "DROP_TRIGGER": Privilege.DROP_TRIGGER,
    "START_TRIGGER": Privilege.START_TRIGGER,
    "STOP_TRIGGER": Privilege.STOP_TRIGGER,
    "FLUSH": None,
    "MERGE": None,
    "FULL_MERGE": None,
    "TTL": None,
    "CLEAR_CACHE": None,
    "CREATE_SCHEMA_SNAPSHOT": None,
    "DELETE_PARTITION": None,
    "SET_SYSTEM_MODE": None,
    "KILL": None,
    "LOAD_CONFIGURATION": None,
    "LOAD_DATA": None,
    "LOAD_FILES": None,
    "REMOVE_FILE": None,
    "MOVE_FILE": None,
    "TRACING": None,
    "GRANT_WATERMARK_EMBEDDING": None,
    "REVOKE_WATERMARK_EMBEDDING": None,
    "CREATE_TEMPLATE": None,
    "SET_SCHEMA_TEMPLATE": None,
}

# What everybody may do: looking at schema and at the server's work, and statements that nobody can have carried out.
OPEN_OPERATIONS = frozenset(
    ("SHOW", "SHOW_MERGE_STATUS", "UPDATE", "DESCRIBE", "SHOW_METADATA", "CREATE_INDEX", "DROP_INDEX", "QUERY_INDEX")
)

# Another privilege that serves as well: the original asks for the one on the right where a role is given to a user.
ALTERNATIVES = {Privilege.GRANT_USER_ROLE: Privilege.GRANT_ROLE_PRIVILEGE}


def privilege_of(name: str) -> Privilege:
    """By name, in any case; 411 "No such privilege <name>"."""
    found = Privilege.__members__.get(name.upper())
    if found is None:
        raise CallerError(Status.QUERY_PROCESS_ERROR, f"No such privilege {name}")
    return found


def no_permission(operation: str) -> CallerError:
    """602, as every refused operation is answered."""
    return CallerError(Status.NO_PERMISSION, f"No permissions for this operation {operation}")
