from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


@pytest.fixture(scope="session")
def interaction() -> ModuleType:
    """The runner of the interaction scripts, which is a program too."""
    return _load("interaction")


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    return _load("oracle")


@pytest.fixture(scope="session")
def datadriven() -> ModuleType:
    """The grammar of data-driven test files."""
    return _load("datadriven")


@pytest.fixture(scope="session")
def harness(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """etcd's own harness, built; skips, saying why, where that is not possible."""
    try:
        return oracle.find_oracle(None, tmp_path_factory.mktemp("oracle"))  # type: ignore[no-any-return]
    except oracle.Missing as exception:
        pytest.skip(f"the core is NOT compared with etcd's here: {exception}")
