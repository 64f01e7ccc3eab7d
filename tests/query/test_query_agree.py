"""Real clusters against the naive model and against each other, on random scripts; `agree.py` is the long form."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

QUERIES = 200


@pytest.fixture
def agree() -> ModuleType:
    path = Path(__file__).parent / "agree.py"
    spec = importlib.util.spec_from_file_location("query_agree", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_one_node_three_nodes_and_the_model_agree(new_cluster: Callable[..., Any], agree: ModuleType) -> None:
    one, three = new_cluster(nodes=1), new_cluster(nodes=3)
    with one, three:
        done, wrong = agree.run([one.ports, three.ports], QUERIES, seed=1, every_port=True)
        complaints = [*one.complaints(), *three.complaints()]
    assert not wrong, wrong
    assert done >= QUERIES
    assert complaints == []
