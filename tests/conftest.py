"""Fixtures that several rooms' tests share: clusters of real processes, and modules of the tests by their path."""

import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--histories", type=int, default=300, help="random histories of membership (tests/partition)")
    parser.addoption("--histories-from", type=int, default=1, help="the seed of the first one")


def load(path: str) -> ModuleType:
    """A module of the tests by its path below `tests/`, made once.

    By path, because a package `tests` of the environment (the stock client brings one) would hide this directory.
    """
    name = "iotdb_tests_" + path.removeprefix("../").removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    """`tests/cluster/processes.py`."""
    return load("cluster/processes.py")


@pytest.fixture(scope="session")
def replay() -> ModuleType:
    """`tests/conformance/replay.py`."""
    return load("conformance/replay.py")


@pytest.fixture(scope="session")
def flips() -> ModuleType:
    """`tests/damage/flips.py`."""
    return load("damage/flips.py")


@pytest.fixture(scope="session")
def membership() -> ModuleType:
    """`tests/cluster/membership.py`."""
    return load("cluster/membership.py")


@pytest.fixture(scope="session")
def durability() -> ModuleType:
    """`tests/cluster/durability.py`."""
    return load("cluster/durability.py")


@pytest.fixture(scope="session")
def failover() -> ModuleType:
    """`tests/cluster/failover.py`."""
    return load("cluster/failover.py")


@pytest.fixture(scope="session")
def rows() -> ModuleType:
    """`tests/cluster/privilege_rows.py`."""
    return load("cluster/privilege_rows.py")


@pytest.fixture(scope="session")
def load_generator() -> ModuleType:
    """`bench/load.py`."""
    return load("../bench/load.py")


@pytest.fixture(scope="session")
def catch_up() -> ModuleType:
    """`bench/catch_up.py`."""
    return load("../bench/catch_up.py")


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running cluster for the module; `indirect` parameters are those of `Processes` (default: 3 nodes)."""
    made = load("cluster/processes.py").Processes(
        tmp_path_factory.mktemp("cluster"), **getattr(request, "param", {"nodes": 3})
    )
    with made:
        yield made


@pytest.fixture
def new_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes clusters for one test, not started yet: a function with the parameters of `Processes`."""
    made: list[Any] = []

    def make(**parameters: Any) -> Any:
        one = load("cluster/processes.py").Processes(tmp_path / f"cluster{len(made)}", **parameters)
        made.append(one)
        return one

    request.node.stash[MADE] = made
    yield make
    for one in made:
        one.stop()


MADE = pytest.StashKey[list[Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure show the end of the nodes' logs."""
    report = yield
    if report.failed:
        clusters = list(item.stash.get(MADE, []))
        clusters += [value for name, value in getattr(item, "funcargs", {}).items() if name == "cluster"]
        for one in clusters:
            report.sections.append(("nodes' logs", one.tails()))
    return report
