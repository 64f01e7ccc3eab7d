"""The only door to time, randomness, files, sockets and threads.

A node is given a `World` and asks nothing else: the simulation gives another one (design: one world). The interfaces
stand first, their real form (`real_world`) behind them; only `tools` makes a real one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from iotdb_cluster.limits import WORKER_THREADS

__all__ = ["Clock", "File", "FileSystem", "Network", "RealFileSystem", "Server", "Workers", "World", "real_world"]

T = TypeVar("T")
BACKLOG = 1_024  # connections that wait to be accepted


class Clock(Protocol):
    """`monotonic_ms` never goes back and measures durations; `wall_ms` is the Unix time that users see."""

    def monotonic_ms(self) -> float: ...
    def wall_ms(self) -> int: ...


class File(Protocol):
    """An open file. Methods raise OSError; `read` gives fewer bytes at the end of the file."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...
    def sync(self) -> None: ...
    def size(self) -> int: ...
    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...


class FileSystem(Protocol):
    """Files by path. What is not synced may be lost, or torn, by a crash.

    A new, renamed or removed name is durable once its directory was synced.
    """

    def open(self, path: str, *, create: bool = False) -> File: ...
    def exists(self, path: str) -> bool: ...
    def list(self, path: str) -> list[str]: ...
    def make_directories(self, path: str) -> None: ...
    def rename(self, source: str, target: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def remove_tree(self, path: str) -> None: ...
    def sync_directory(self, path: str) -> None: ...
    def free_bytes(self, path: str) -> int: ...
    def lock(self, path: str) -> File: ...


class Server(Protocol):
    """A listening socket; `port` is the one in fact bound."""

    @property
    def port(self) -> int: ...
    async def close(self) -> None: ...


class Network(Protocol):
    """Stream connections, as asyncio protocols. Both raise OSError."""

    async def listen(self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> Server: ...
    async def connect(
        self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol], timeout_ms: float
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]: ...


class Workers(Protocol):
    """Threads for what would hold the loop longer than `LOOP_BLOCKED_MS_MAX`."""

    async def run(self, work: Callable[..., T], *args: Any) -> T: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class World:
    clock: Clock
    random: random.Random
    files: FileSystem
    network: Network
    workers: Workers


# --- the real form ----------------------------------------------------------------------------------------------------


class _RealClock:
    def monotonic_ms(self) -> float:
        return time.monotonic() * 1000.0

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class _RealFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length > 0:
            piece = os.pread(self._descriptor, length, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            written = os.pwrite(self._descriptor, view, offset)
            offset += written
            view = view[written:]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealFileSystem:
    """The files of this machine."""

    def open(self, path: str, *, create: bool = False) -> File:
        return _RealFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted; none where it does not exist."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def make_directories(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.remove(path)

    def remove_tree(self, path: str) -> None:
        for name in self.list(path):
            below = os.path.join(path, name)
            if os.path.isdir(below) and not os.path.islink(below):
                self.remove_tree(below)
            else:
                os.remove(below)
        os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        space = os.statvfs(path)
        return space.f_bavail * space.f_frsize

    def lock(self, path: str) -> File:
        """Lock a file until it is closed; BlockingIOError where another process holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return _RealFile(descriptor)


class _RealServer:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket; "" is every address. Accepted connections inherit the probing of silent ends."""
    if not host and socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setblocking(False)
    return listener


class _RealNetwork:
    async def listen(self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> Server:
        loop = asyncio.get_running_loop()
        listener = _listener(host, port)
        try:
            return _RealServer(await loop.create_server(factory, sock=listener, backlog=BACKLOG))
        except BaseException:
            listener.close()
            raise

    async def connect(
        self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol], timeout_ms: float
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                transport, protocol = await loop.create_connection(factory, host, port)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"no answer from {host}:{port} within {timeout_ms:.0f} ms") from None
        # The system draws this end's port from a range that the usual ports of a node lie in: a node of this machine
        # that is down must get its port back when it starts again, also while this connection has it.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return transport, protocol


class _RealWorkers:
    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="worker")

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def real_world(threads: int = WORKER_THREADS) -> World:
    """The world of this machine; the random numbers are seeded by the system."""
    return World(_RealClock(), random.Random(), RealFileSystem(), _RealNetwork(), _RealWorkers(threads))
