"""A part of the seeds that CI runs; see `seeds`."""

from __future__ import annotations

import pytest

from iotdb_cluster.simulation.swarm import run_seed
from tests.simulation.seeds import part


@pytest.mark.parametrize("seed", part(1))
def test_a_seed_passes(seed: int) -> None:
    run_seed(seed)
