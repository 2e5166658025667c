"""What the tests of the benchmarks share."""

import pytest


@pytest.fixture
def steering(root, monkeypatch):
    """Let the programs of benchmarks/steering be imported."""
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "steering"))
