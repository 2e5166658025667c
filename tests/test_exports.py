"""The names of the package are those of its modules, whatever has been imported before."""

import importlib
import importlib.util

import pytest

import clip_guidance


@pytest.mark.slow
def test_no_module_hides_a_name():
    """A submodule becomes an attribute of the package when it is imported: a function of its name would be lost."""
    for name, module in clip_guidance._EXPORTS.items():
        exported = getattr(importlib.import_module(f"clip_guidance.{module}"), name)
        assert getattr(clip_guidance, name) is exported, name
        assert importlib.util.find_spec(f"clip_guidance.{name}") is None, f"{name} is also a module"
