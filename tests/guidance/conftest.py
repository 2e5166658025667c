"""Fixtures of the guidance tests; what they build is in tiny_pipeline.py."""

import pytest
import torch
from helpers.factories import TinyCLIP, assemble, make_pipeline, make_scheduler


@pytest.fixture(scope="session")
def networks(device):
    """The networks of the tiny pipeline in each precision, shared by all tests."""

    def build(dtype):
        names = ("vae", "text_encoder", "tokenizer", "unet")
        parts = {name: getattr(make_pipeline(), name) for name in names}
        return {k: v.to(device, dtype) if isinstance(v, torch.nn.Module) else v for k, v in parts.items()}

    return {dtype: build(dtype) for dtype in (torch.float32, torch.float64)}


@pytest.fixture
def tiny_pipeline(networks):
    """(scheduler name, dtype, scheduler config) -> a pipeline with a scheduler of its own."""

    def make(scheduler="ddim", dtype=torch.float32, **config):
        return assemble(**networks[dtype], scheduler=make_scheduler(scheduler, **config))

    return make


@pytest.fixture
def clip(device):
    torch.manual_seed(1)
    return TinyCLIP().to(device)
