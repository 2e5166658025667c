"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html``, and ``-b doctest``."""

import os
import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from docutils import nodes

import clip_guidance

os.environ["HF_HUB_OFFLINE"] = "1"  # the examples use the packaged models; nothing may be downloaded
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

project = "clip_guidance"
author = "The authors of clip_guidance"
copyright = "the authors, Apache-2.0"
release = version = clip_guidance.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

# Pages in Markdown

myst_heading_anchors = 3  # links such as train.md#bad-rows are checked

# Docstrings

OPTIONAL = ("datasets", "gradio", "matplotlib", "peft", "pyarrow", "pymilvus", "yaml")
autodoc_mock_imports = [name for name in OPTIONAL if find_spec(name) is None]  # so that the extra `docs` suffices
autosummary_generate = False  # the pages of reference/ are written by hand, their contents are not
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch and transformers are not written for this parser
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are described once, in their class

# Doctest: printed numbers are rounded in the examples, so that another processor prints the same

doctest_global_setup = """
import diffusers
import torch
import transformers
import clip_guidance as cg
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
"""


def mark_doctests(app: Any, doctree: nodes.document) -> None:
    """Let the doctest builder run the blocks of Python sessions in Markdown pages, which stay plain Markdown."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "pycon":
            block.update_all_atts({"testnodetype": "doctest", "groups": ["default"], "options": {}})


def link_tables(app: Any, page: str, source: list[str]) -> None:
    """Offer the tables of benchmarks/ for download: they are Markdown, but no pages of the site."""
    source[0] = re.sub(r"\[([^]]+)\]\(((?:\.\./)+benchmarks/\S+\.md)\)", r"{download}`\1 <\2>`", source[0])


def complete_automodules(app: Any, page: str, source: list[str]) -> None:
    """Complete each ``automodule``: its examples may use its names, and what its package exports is described there."""

    def completed(directive: re.Match[str]) -> str:
        module = directive[1]
        package = module.rpartition(".")[0]
        exported = () if package == "clip_guidance" else getattr(import_module(package), "__all__", ())
        exclude = f"\n   :exclude-members: {', '.join(exported)}" if exported else ""
        return f".. testsetup::\n\n   from {module} import *\n\n{directive[0]}{exclude}"

    source[0] = re.sub(r"^\.\. automodule:: (\S+)$", completed, source[0], flags=re.M)


def setup(app: Any) -> None:
    """Connect the three."""
    app.connect("source-read", complete_automodules)
    app.connect("source-read", link_tables)
    app.connect("doctree-read", mark_doctests)


# The look

html_theme = "furo"
html_title = f"clip_guidance {version}"
html_static_path: list[str] = []
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
