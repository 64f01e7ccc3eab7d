"""Nonsense is answered with a status and does no harm; `fuzz.py` is the long form."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SECONDS = 6.0


@pytest.fixture
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_fuzz", Path(__file__).parent / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_nonsense_does_no_harm(new_cluster: Callable[..., Any], fuzz: ModuleType) -> None:
    with new_cluster(nodes=1) as cluster:
        sent, wrong = fuzz.run(cluster, SECONDS, seed=2)
    assert not wrong, "\n".join(wrong)
    assert sent > 0
