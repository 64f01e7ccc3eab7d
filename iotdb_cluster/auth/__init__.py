"""Users, roles and privileges: pure state, and the hashing of passwords."""

from __future__ import annotations

from iotdb_cluster.auth.passwords import SALT_BYTES, check_password, hash_password, verify_password
from iotdb_cluster.auth.privileges import OPERATION_PRIVILEGES, Privilege, no_permission, privilege_of
from iotdb_cluster.auth.state import ADMINISTRATOR, AuthState

__all__ = [
    "ADMINISTRATOR",
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
