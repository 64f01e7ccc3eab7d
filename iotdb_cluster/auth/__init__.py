"""Users, roles and privileges: pure state, and the hashing of passwords."""

from __future__ import annotations

from iotdb_cluster.auth.passwords import SALT_BYTES, check_password, hash_password, verify_password
from iotdb_cluster.auth.privileges import (
    OPEN_OPERATIONS,
    OPERATION_PRIVILEGES,
    Privilege,
    no_permission,
    privilege_of,
)
from iotdb_cluster.auth.state import NAME_CHARS_MIN, AuthState

__all__ = [
    "NAME_CHARS_MIN",
    "OPEN_OPERATIONS",
    "OPERATION_PRIVILEGES",
    "SALT_BYTES",
    "AuthState",
    "Privilege",
    "check_password",
    "hash_password",
    "no_permission",
    "privilege_of",
    "verify_password",
]
