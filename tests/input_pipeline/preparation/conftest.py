"""The builders of `toy_builder` are known while a test runs."""

import pytest

from input_pipeline.preparation import builders


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(builders.BUILDERS, "toy", "toy_builder:Toy")
    monkeypatch.setitem(builders.BUILDERS, "killed", "toy_builder:Killed")
