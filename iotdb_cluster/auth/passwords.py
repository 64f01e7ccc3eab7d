"""Hashing of passwords. Slow by intent: call it on a worker thread."""

from __future__ import annotations

import hashlib
import hmac

from iotdb_cluster.errors import CallerError, Status

__all__ = ["check_password", "hash_password", "verify_password"]

PASSWORD_CHARS_MIN = 4
PASSWORD_CHARS_MAX = 1_024
SALT_BYTES = 16
COST = 1 << 13  # scrypt's N with r = 8: 8 MiB and some 20 ms a login
_BLOCK = 8
_HASH_BYTES = 32


def check_password(password: str) -> None:
    """411 where it is too short, or longer than anybody types."""
    if len(password) < PASSWORD_CHARS_MIN:
        text = f"Password's size must be greater than or equal to {PASSWORD_CHARS_MIN}"
        raise CallerError(Status.QUERY_PROCESS_ERROR, text)
    if len(password) > PASSWORD_CHARS_MAX:
        text = f"Password's size must be at most {PASSWORD_CHARS_MAX}"
        raise CallerError(Status.QUERY_PROCESS_ERROR, text)


def hash_password(password: str, salt: bytes) -> str:
    """What is stored and travels: "scrypt$cost$block$salt$hash". `salt`: SALT_BYTES random bytes of this password."""
    digest = _digest(password, salt, COST, _BLOCK)
    return f"scrypt${COST}${_BLOCK}${salt.hex()}${digest.hex()}"


def verify_password(password: str, hashed: str) -> bool:
    """Whether the password is the one that was hashed; nothing is the password of ""."""
    if not hashed or len(password) > PASSWORD_CHARS_MAX:
        return False
    kind, cost, block, salt, digest = hashed.split("$")
    if kind != "scrypt":
        return False
    return hmac.compare_digest(_digest(password, bytes.fromhex(salt), int(cost), int(block)), bytes.fromhex(digest))


def _digest(password: str, salt: bytes, cost: int, block: int) -> bytes:
    # A lone surrogate cannot come from UTF-8, but must not end a login with an encoding error either.
    text = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=cost, r=block, p=1, maxmem=1 << 26, dklen=_HASH_BYTES)
