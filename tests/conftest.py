"""Options and fixtures of the whole suite: the same tests run on any device and in any precision."""

import importlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch
from diffusers import StableDiffusionPipeline  # noqa: F401
from transformers import CLIPModel  # noqa: F401

import clip_guidance

# Whatever is slow to import is loaded here, so that no test pays for it out of its own share of CPU seconds.
for name in clip_guidance.__all__:
    getattr(clip_guidance, name)

pytest_plugins = ["helpers.slow"]
# The same examples every time, so that a run fails only for a change of the code; time is the matter of --cpu-limit.
hypothesis.settings.register_profile("suite", max_examples=40, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")
ROOT = Path(__file__).resolve().parents[1]
# Many tests compare bit for bit; with several threads a busy machine may split the same sum differently. Besides,
# there is a process of pytest-xdist for every core already. The variable says so to the programs that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

DTYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.bfloat16)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device the tests run on, e.g. cpu, cuda, cuda:1, mps")
    parser.addoption("--write-docs", action="store_true", help="write docs/support.md and the notebooks from the tests")
    parser.addoption("--dtype", default="float32", choices=DTYPES, help="precision of the models under test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") != "cpu":
        config.option.cpu_limit = math.inf  # the first test on another device pays for starting it
    if config.getoption("--write-docs") and not config.getoption("--full"):
        raise pytest.UsageError("--write-docs needs --full: the tests that find what is written are slow")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.config.getoption("--dtype")]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def train_clip() -> ModuleType:
    """The program that trains a CLIP, of which training/train_clip.py is the name in a clone."""
    return importlib.import_module("clip_guidance.training.train_clip")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and texts beside the checkout, which is not part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real images and texts in {folder}, which is not there")
    return folder


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
