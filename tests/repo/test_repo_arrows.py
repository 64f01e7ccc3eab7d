"""The rooms and the one-way arrows between them (docs/design/README.md), read from the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "iotdb_cluster"
VOCABULARY = {"errors", "limits", "columns", "packing", "requests"}
ARROWS: dict[str, set[str]] = {
    "raft": set(),
    "schema": set(),
    "partition": set(),
    "auth": {"schema"},
    "sql": {"schema"},
    "storage": {"world"},
    "query": {"storage", "schema", "sql"},
    "meta": {"partition", "schema", "auth"},
    "data": {"storage", "schema", "query", "world"},
    "rpc": {"world"},
    "cluster": {"rpc", "raft", "meta", "data", "partition", "schema", "sql", "query", "auth", "storage", "world"},
    "simulation": set(),  # may import everything
    "tools": {"cluster", "storage", "schema", "sql", "rpc", "world"},
}
PURE = ("raft", "sql", "query", "schema", "partition", "auth", "meta", "data")
# What no room of a node may import: the world is the only door to time, chance, files, sockets and threads.
WORLDLY = {
    "concurrent",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
WORLDLY_CALLS = {
    "open",
    "random.random",
    "random.randrange",
    "random.randint",
    "random.choice",
    "random.shuffle",
    "datetime.now",
    "datetime.datetime.now",
    "asyncio.to_thread",
    "asyncio.open_connection",
    "asyncio.start_server",
    "np.random.default_rng",
}
NODE_ROOMS = [room for room in ARROWS if room not in ("simulation", "tools")]


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports from the package root"
            found.append((node.lineno, node.module or ""))
            if node.module == "iotdb_cluster":
                found += [(node.lineno, f"iotdb_cluster.{alias.name}") for alias in node.names]
    return found


def test_every_room_is_listed() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(ARROWS)


@pytest.mark.parametrize("room", [room for room in ARROWS if room != "simulation"])
def test_arrows(room: str) -> None:
    allowed = ARROWS[room] | VOCABULARY | {room}
    wrong = []
    for path in modules(room):
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] == "iotdb_cluster" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_vocabulary_imports_vocabulary_only() -> None:
    for name in (*VOCABULARY, "world"):
        for line, imported in imports(PACKAGE / f"{name}.py"):
            parts = imported.split(".")
            assert parts[0] != "iotdb_cluster" or len(parts) == 1 or parts[1] in VOCABULARY, f"{name}.py:{line}"


@pytest.mark.parametrize("room", NODE_ROOMS)
def test_one_world(room: str) -> None:
    """No room of a node opens a file, a socket, a thread or the clock, or draws a random number of its own."""
    wrong = []
    for path in modules(room):
        tree = ast.parse(path.read_text())
        for line, name in imports(path):
            top = name.split(".")[0]
            if top in WORLDLY and name != "importlib.resources" and not harmless(path, name):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno} calls {name_of(node.func)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and name_of(node.func) in WORLDLY_CALLS
        ]
    assert not wrong, "\n".join(wrong)


def harmless(path: Path, name: str) -> bool:
    """`pathlib` to find packaged resources that are read at import; `threading` for its locks alone."""
    if name == "threading":
        used = {name_of(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return {one for one in used if one.startswith("threading.")} <= {"threading.Lock", "threading.RLock"}
    return name == "pathlib" and path.parts[-2:] in (("rpc", "idl.py"), ("sql", "grammar.py"))


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_have_no_async(room: str) -> None:
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path}:{node.lineno}"


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""
