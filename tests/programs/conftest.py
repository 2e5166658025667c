"""What the tests of the hub's artefacts share: the program that builds them, and models that their cards name."""

import importlib.util
import sys

import pytest
from helpers import hub_models


@pytest.fixture(scope="module")
def builder(root):
    spec = importlib.util.spec_from_file_location("build_program", root / "pipelines" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """A folder of tiny models that are called as those on the hub."""
    folder = tmp_path_factory.mktemp("models")
    hub_models.save_models(folder)
    return folder
