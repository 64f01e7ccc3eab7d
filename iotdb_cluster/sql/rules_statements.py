"""What the rules of all statements but SELECT mean."""

from __future__ import annotations

from typing import Any

from lark.lexer import Token

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.sql import statements as st
from iotdb_cluster.sql.rules_select import Clause, int32_of, plan_error_text
from iotdb_cluster.sql.rules_values import IndexPredicate, Pair
from iotdb_cluster.sql.times import int64_of, semantic_error

__all__ = ["StatementRules", "delete_range", "insert_of"]

_DELETE_VALUE_FILTER = (
    "For delete statement, where clause can only contain time expressions, value filter is not currently supported."
)
_DELETE_NOT_ATOMIC = (
    "For delete statement, where clause can only contain atomic expressions like : time > XXX, time <= XXX, or two "
    "atomic expressions connected by 'AND'"
)


def insert_of(device: str, time: int, measurements: tuple[str, ...], values: tuple[str, ...]) -> st.Insert:
    """The statement, or CallerError (303) where names and values differ in number."""
    if len(measurements) != len(values):
        raise semantic_error(
            f"the measurementList's size {len(measurements)} is not consistent with the valueList's size {len(values)}"
        )
    return st.Insert(device, time, measurements, values)


def _bounds(condition: st.Condition | IndexPredicate) -> tuple[int, int]:
    """The inclusive range of one comparison with time."""
    if not isinstance(condition, st.Comparison):
        raise semantic_error(_DELETE_NOT_ATOMIC)
    if condition.target is not st.TIME:
        raise semantic_error(_DELETE_VALUE_FILTER)
    literal = condition.literal
    time = int(literal.text) if literal.time is None else literal.time
    match condition.op:
        case st.CompareOp.GT:
            return time + 1, INT64_MAX
        case st.CompareOp.GE:
            return time, INT64_MAX
        case st.CompareOp.LT:
            return INT64_MIN, time - 1
        case st.CompareOp.LE:
            return INT64_MIN, time
        case st.CompareOp.EQ:
            return time, time
        case _:
            raise semantic_error(_DELETE_NOT_ATOMIC)


def delete_range(where: st.Condition | IndexPredicate | None) -> tuple[int, int]:
    """The inclusive time range that the WHERE clause of a DELETE means; raises CallerError (303)."""
    if where is None:
        return INT64_MIN, INT64_MAX
    atoms = where.children if isinstance(where, st.And) else (where,)
    if len(atoms) > 2:
        raise semantic_error(_DELETE_NOT_ATOMIC)
    ranges = [_bounds(atom) for atom in atoms]
    start = max(bounds[0] for bounds in ranges)
    end = min(bounds[1] for bounds in ranges)
    if start > end:
        raise semantic_error(f"Invalid delete range: [{start}, {end}]")
    return start, end


def _merge(clauses: tuple[Clause, ...]) -> Clause:
    fields: Clause = {}
    for clause in clauses:
        fields |= clause
    return fields


def _strings(tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(token) for token in tokens)


def _path(paths: tuple[str, ...]) -> str:
    return paths[0] if paths else "root"


def _unsupported(kind: str, message: str) -> st.Unsupported:
    return st.Unsupported(kind, Status.QUERY_PROCESS_ERROR, plan_error_text(message))


def _level(text: str) -> int:
    return int32_of(text, f"the level {text[:20]} should be Int32.")


class DataRules:
    def measurements(self, *names: str) -> tuple[str, ...]:
        return _strings(names)

    def insert_time(self, value: int | Token) -> int:
        return value if isinstance(value, int) else int64_of(value)

    def insert_values(self, *literals: st.Literal) -> tuple[str, ...]:
        return tuple(literal.text for literal in literals)

    def insert(self, device: str, measurements: tuple[str, ...], time: int, values: tuple[str, ...]) -> st.Insert:
        return insert_of(device, time, measurements, values)

    def delete(self, paths: tuple[str, ...], where: Clause | None = None) -> st.Delete:
        return st.Delete(paths, *delete_range(where["where"] if where else None))

    def update_column(self, *_parts: Any) -> None:
        return None

    def update(self, *_parts: Any) -> st.Unsupported:
        return _unsupported("UPDATE", "Update hasn't been supported yet")


class SchemaRules:
    def set_storage_group(self, path: str) -> st.SetStorageGroup:
        return st.SetStorageGroup(path)

    def delete_storage_groups(self, paths: tuple[str, ...]) -> st.DeleteStorageGroups:
        return st.DeleteStorageGroups(paths)

    def alias(self, *parts: Token) -> Clause:
        return {"alias": str(parts[-1])}

    def type_clause(self, _equals: Token, name: Token) -> Clause:
        return {"data_type": DataType[name.upper()]}

    def encoding_clause(self, _equals: Token, name: Token) -> Clause:
        return {"encoding": Encoding[name.upper()]}

    def compressor_clause(self, _equals: Token, name: Token) -> Clause:
        return {"compressor": Compressor[name.upper()]}

    def tags(self, pairs: tuple[Pair, ...]) -> Clause:
        return {"tags": pairs}

    def attributes(self, pairs: tuple[Pair, ...]) -> Clause:
        return {"attributes": pairs}

    def create_timeseries(self, path: str, *parts: Clause | Pair) -> st.CreateTimeseries:
        properties = tuple(part for part in parts if isinstance(part, tuple))
        fields = _merge(tuple(part for part in parts if isinstance(part, dict)))
        return st.CreateTimeseries(path, properties=properties, **fields)

    def delete_timeseries(self, paths: tuple[str, ...]) -> st.DeleteTimeseries:
        return st.DeleteTimeseries(paths)

    def alter_timeseries(self, path: str, change: st.AlterChange) -> st.AlterTimeseries:
        return st.AlterTimeseries(path, change)

    def alter_rename(self, before: Token, after: Token) -> st.AlterRename:
        return st.AlterRename(str(before), str(after))

    def alter_set(self, pairs: tuple[Pair, ...]) -> st.AlterSet:
        return st.AlterSet(pairs)

    def alter_drop(self, *keys: Token) -> st.AlterDrop:
        return st.AlterDrop(_strings(keys))

    def alter_add_tags(self, pairs: tuple[Pair, ...]) -> st.AlterAddTags:
        return st.AlterAddTags(pairs)

    def alter_add_attributes(self, pairs: tuple[Pair, ...]) -> st.AlterAddAttributes:
        return st.AlterAddAttributes(pairs)

    def alter_upsert(self, *clauses: Clause) -> st.AlterUpsert:
        fields = _merge(clauses)
        return st.AlterUpsert(fields.get("alias"), fields.get("tags", ()), fields.get("attributes", ()))

    def set_ttl(self, path: str, ttl: Token) -> st.SetTtl:
        return st.SetTtl(path, int64_of(ttl))

    def unset_ttl(self, path: str) -> st.UnsetTtl:
        return st.UnsetTtl(path)

    def delete_partition(self, path: str, *partitions: Token) -> st.DeletePartition:
        return st.DeletePartition(path, tuple(int64_of(number) for number in partitions))

    def create_snapshot(self) -> st.CreateSnapshot:
        return st.CreateSnapshot()


class ShowRules:
    def show_ttl(self, paths: tuple[str, ...]) -> st.ShowTtl:
        return st.ShowTtl(paths)

    def show_all_ttl(self) -> st.ShowTtl:
        return st.ShowTtl(None)

    def latest(self, _token: Token) -> Clause:
        return {"latest": True}

    def tag_equals(self, key: Token, _equals: Token, value: str | st.Literal) -> Clause:
        return {"tag": (str(key), value.unquoted if isinstance(value, st.Literal) else str(value))}

    def tag_contains(self, key: Token, value: str | st.Literal) -> Clause:
        return self.tag_equals(key, key, value) | {"contains": True}

    def show_timeseries(self, *parts: str | Clause) -> st.ShowTimeseries:
        return st.ShowTimeseries(**_fields(parts))

    def show_storage_groups(self, *paths: str) -> st.ShowStorageGroups:
        return st.ShowStorageGroups(_path(paths))

    def show_child_paths(self, *paths: str) -> st.ShowChildPaths:
        return st.ShowChildPaths(_path(paths))

    def show_child_nodes(self, *paths: str) -> st.ShowChildNodes:
        return st.ShowChildNodes(_path(paths))

    def with_storage_group(self) -> Clause:
        return {"with_storage_group": True}

    def show_devices(self, *parts: str | Clause) -> st.ShowDevices:
        return st.ShowDevices(**_fields(parts))

    def count_timeseries(self, *parts: str) -> st.CountTimeseries:
        paths = [part for part in parts if not isinstance(part, Token)]
        level = None if len(paths) == len(parts) else _level(parts[-1])
        return st.CountTimeseries(_path(tuple(paths)), level)

    def count_devices(self, *paths: str) -> st.CountDevices:
        return st.CountDevices(_path(paths))

    def count_storage_groups(self, *paths: str) -> st.CountStorageGroups:
        return st.CountStorageGroups(_path(paths))

    def count_nodes(self, path: str, _equals: Token, level: Token) -> st.CountNodes:
        return st.CountNodes(path, _level(level))

    def show_version(self) -> st.ShowVersion:
        return st.ShowVersion()

    def show_flush_task_info(self) -> st.ShowFlushTaskInfo:
        return st.ShowFlushTaskInfo()

    def show_lock_info(self, *paths: str) -> st.ShowLockInfo:
        return st.ShowLockInfo(_path(paths))

    def show_merge(self) -> st.ShowMerge:
        return st.ShowMerge()

    def show_query_processlist(self) -> st.ShowQueryProcesslist:
        return st.ShowQueryProcesslist()

    def temporary(self, _token: Token) -> bool:
        return True

    def show_functions(self, temporary: bool = False) -> st.ShowFunctions:
        return st.ShowFunctions(temporary)

    def show_triggers(self, *paths: str) -> st.ShowTriggers:
        return st.ShowTriggers(_path(paths))


def _fields(parts: tuple[str | Clause, ...]) -> Clause:
    return _merge(tuple(part if isinstance(part, dict) else {"path": part} for part in parts))


class UserRules:
    def create_user(self, user: Token, password: str) -> st.CreateUser:
        return st.CreateUser(str(user), password)

    def drop_user(self, user: Token) -> st.DropUser:
        return st.DropUser(str(user))

    def alter_user(self, user: Token, password: str) -> st.AlterUser:
        return st.AlterUser(str(user), password)

    def create_role(self, role: Token) -> st.CreateRole:
        return st.CreateRole(str(role))

    def drop_role(self, role: Token) -> st.DropRole:
        return st.DropRole(str(role))

    def user_or_role(self, token: Token) -> bool:
        return token.upper() == "ROLE"

    def grant_privileges(self, is_role: bool, name: Token, privileges: tuple[str, ...], path: str) -> st.Statement:
        return st.PrivilegeChange(True, is_role, str(name), privileges, path)

    def revoke_privileges(self, is_role: bool, name: Token, privileges: tuple[str, ...], path: str) -> st.Statement:
        return st.PrivilegeChange(False, is_role, str(name), privileges, path)

    def grant_role(self, role: Token, user: Token) -> st.GrantRoleToUser:
        return st.GrantRoleToUser(str(role), str(user))

    def revoke_role(self, role: Token, user: Token) -> st.RevokeRoleFromUser:
        return st.RevokeRoleFromUser(str(role), str(user))

    def grant_watermark(self, *users: Token) -> st.GrantWatermark:
        return st.GrantWatermark(_strings(users))

    def revoke_watermark(self, *users: Token) -> st.RevokeWatermark:
        return st.RevokeWatermark(_strings(users))

    def list_users(self) -> st.ListUsers:
        return st.ListUsers()

    def list_roles(self) -> st.ListRoles:
        return st.ListRoles()

    def list_user_privileges(self, user: Token, path: str | None = None) -> st.ListUserPrivileges:
        return st.ListUserPrivileges(str(user), path)

    def list_role_privileges(self, role: Token, path: str | None = None) -> st.ListRolePrivileges:
        return st.ListRolePrivileges(str(role), path)

    def list_roles_of_user(self, user: Token) -> st.ListRolesOfUser:
        return st.ListRolesOfUser(str(user))

    def list_users_of_role(self, role: Token) -> st.ListUsersOfRole:
        return st.ListUsersOfRole(str(role))


class UtilityRules:
    def merge(self) -> st.Merge:
        return st.Merge()

    def full_merge(self) -> st.Merge:
        return st.Merge(full=True)

    def flush(self, *parts: tuple[str, ...] | str) -> st.Flush:
        paths: tuple[str, ...] = ()
        sequence: bool | None = None
        for part in parts:
            if isinstance(part, str):
                sequence = part.lower() == "true"
            else:
                paths = part
        return st.Flush(paths, sequence)

    def clear_cache(self) -> st.ClearCache:
        return st.ClearCache()

    def system_mode(self, token: Token) -> bool:
        return token.upper() == "READONLY"

    def set_system_mode(self, read_only: bool) -> st.SetSystemMode:
        return st.SetSystemMode(read_only)

    def kill(self, query_id: Token | None = None) -> st.Kill:
        return st.Kill(None if query_id is None else int64_of(query_id))

    def on_or_off(self, token: Token) -> bool:
        return token.upper() == "ON"

    def tracing(self, on: bool) -> st.Tracing:
        return st.Tracing(on)

    def everywhere(self, _minus: Token) -> bool:
        return True

    def load_configuration(self, everywhere: bool = False) -> st.LoadConfiguration:
        return st.LoadConfiguration(everywhere)

    def load_auto_register(self, _equals: Token, value: str) -> Clause:
        return {"auto_register": value.lower() == "true"}

    def load_sg_level(self, _equals: Token, level: Token) -> Clause:
        return {"sg_level": _level(level)}

    def load_verify(self, _equals: Token, value: str) -> Clause:
        return {"verify": value.lower() == "true"}

    def load_files(self, file: str, *options: Clause) -> st.LoadFiles:
        return st.LoadFiles(file, **_merge(options))

    def load_timeseries(self, file: str, path: str) -> st.LoadTimeseries:
        return st.LoadTimeseries(file, path)

    def remove_file(self, file: str) -> st.RemoveFile:
        return st.RemoveFile(file)

    def move_file(self, file: str, directory: str) -> st.MoveFile:
        return st.MoveFile(file, directory)

    def show_metadata(self) -> st.Unsupported:
        return _unsupported("SHOW_METADATA", "Show metadata hasn't been supported yet")

    def describe(self, _path: str) -> st.Unsupported:
        return _unsupported("DESCRIBE", "Describe hasn't been supported yet")


class ExtensionRules:
    def create_function(self, *parts: Any) -> st.CreateFunction:
        return st.CreateFunction(str(parts[-2]), parts[-1], temporary=len(parts) > 2)

    def drop_function(self, name: Token) -> st.DropFunction:
        return st.DropFunction(str(name))

    def trigger_event(self, token: Token) -> bool:
        return token.upper() == "BEFORE"

    def create_trigger(self, name: Token, before: bool, path: str, class_name: str, *pairs: Pair) -> st.CreateTrigger:
        return st.CreateTrigger(str(name), before, path, class_name, pairs)

    def drop_trigger(self, name: Token) -> st.DropTrigger:
        return st.DropTrigger(str(name))

    def start_trigger(self, name: Token) -> st.StartTrigger:
        return st.StartTrigger(str(name))

    def stop_trigger(self, name: Token) -> st.StopTrigger:
        return st.StopTrigger(str(name))

    def create_index(self, *_parts: Any) -> st.Unsupported:
        return _unsupported("CREATE_INDEX", "Create index hasn't been supported yet")

    def drop_index(self, *_parts: Any) -> st.Unsupported:
        return _unsupported("DROP_INDEX", "Drop index hasn't been supported yet")


class StatementRules(DataRules, SchemaRules, ShowRules, UserRules, UtilityRules, ExtensionRules):
    """All statements but SELECT."""
