"""Every pipeline of diffusers has a row, a refusal, or is known to be guided by its latents alone."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import helpers
import pytest
import torch
from diffusers.utils import DummyObject
from helpers.pipeline_zoo import PIPELINES
from torch import nn

from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.layouts import image_part
from clip_guidance.guidance.adapters.pipelines import ADAPTERS, check_exact, find_adapter
from clip_guidance.guidance.adapters.size import Size
from clip_guidance.guidance.adapters.unsupported import LATENT_ONLY, NO_EXACT, UNSUPPORTED_PIPELINES
from clip_guidance.guidance.engine.decoder import Decoder

_TABLES = (ADAPTERS, UNSUPPORTED_PIPELINES, LATENT_ONLY)
_BASES = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)


def _exported():
    """All pipelines by name; those whose requirements are not installed are stand-ins without base classes."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if "Pipeline" in name}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and _is_pipeline(name, cls)}


def _is_pipeline(name, cls):
    if isinstance(cls, DummyObject):
        return name.endswith(("Pipeline", "PipelineLegacy"))
    return issubclass(cls, _BASES) and cls not in _BASES


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # Kolors' text encoder
def test_no_pipeline_is_forgotten():
    known = set().union(*_TABLES)
    exported = _exported()
    assert len(exported) > 200
    assert not [name for name, cls in exported.items() if not any(base.__name__ in known for base in cls.__mro__)]


def test_the_tables_name_pipelines_that_exist_and_do_not_overlap():
    for table in (*_TABLES, NO_EXACT):
        assert not [name for name in table if not hasattr(diffusers, name)]
    assert sum(map(len, _TABLES)) == len(set().union(*_TABLES))
    assert set(NO_EXACT) <= set(ADAPTERS)


def test_every_row_is_tried_on_a_pipeline():
    folder = Path(helpers.__file__).parent / "pipelines"
    modules = [importlib.import_module(f"helpers.pipelines.{file.stem}") for file in folder.glob("*.py")]
    built = {key.split(" + ")[0] for module in modules for key in getattr(module, "PIPELINES", {})}
    assert not set(ADAPTERS) - built


def test_a_refusal_says_why():
    pipe = type("LTX2Pipeline", (SimpleNamespace,), {})(transformer=nn.Identity())
    with pytest.raises(ValueError, match="LTX2Pipeline cannot be guided: copies of one scheduler"):
        find_adapter(pipe)


def test_a_refusal_of_mode_exact_says_why():
    check_exact(SimpleNamespace())
    pipe = type("CycleDiffusionPipeline", (SimpleNamespace,), {})()
    with pytest.raises(ValueError, match="differentiate CycleDiffusionPipeline: its denoiser reads .* Use mode='x0'"):
        check_exact(pipe)


def test_a_subclass_of_a_row_may_be_latent_only():
    base = type("QwenImageModularPipeline", (SimpleNamespace,), {})
    layered = type("QwenImageLayeredModularPipeline", (base,), {})
    assert find_adapter(base(transformer=nn.Identity())).decode is not None
    assert find_adapter(layered(transformer=nn.Identity())).decode is None


@pytest.mark.parametrize("name", ["unet", "transformer", "prior", "decoder"])
def test_a_pipeline_that_only_its_latents_guide_names_its_denoiser(name):
    pipe = type("WuerstchenPriorPipeline", (SimpleNamespace,), {})(**{name: nn.Identity()})
    adapter = find_adapter(pipe)
    assert adapter.denoiser == name
    assert adapter.decode is None


def test_a_row_of_numbers_is_split_as_its_pipeline_splits_it():
    pipe = SimpleNamespace(num_channels_latents=4, vae_scale_factor=2, image_encoder_projection_dim=5)
    sample = torch.randn(2, 4 * 8 * 12 + 5)
    latents, _ = diffusers.UniDiffuserPipeline._split(pipe, sample, 16, 24)
    assert image_part(pipe, sample, PipelineCall(pipe, Size(16, 24))).equal(latents)
    for size, given in ((None, sample), (Size(16, 24), sample[..., None])):
        with pytest.raises(ValueError, match=rf"image's row of numbers.*{re.escape(str(tuple(given.shape)))}"):
            image_part(pipe, given, PipelineCall(pipe, size))


@pytest.mark.parametrize(("key", "missing"), [
    ("LTXPipeline", "are rows of tokens, whose height and width are known only while"),
    ("LTXImageToVideoPipeline", "lack the given frame, which is known only while the pipeline itself runs"),
    ("WanImageToVideoPipeline + expand_timesteps", "lack the given frame"),
])  # fmt: skip
def test_a_sample_that_lacks_a_part_is_refused_in_a_loop_written_by_hand(key, missing):
    pipe, _ = PIPELINES[key]()
    for call in (None, PipelineCall(pipe)):
        with pytest.raises(ValueError, match=rf"{key.split()[0]} {missing}.*space='latent'") as caught:
            Decoder(pipe, "image").unpack(torch.zeros(1, 4, 2, 4, 6), call)
        assert len(str(caught.value)) <= 300


def test_tokens_that_do_not_fit_the_size_are_refused():
    pipe, _ = PIPELINES["LTXPipeline"]()
    with pytest.raises(ValueError, match=r"multiple of 8 x 16 tokens for a video of 32 x 64 .*\(1, 100, 4\) from LTX"):
        Decoder(pipe, "image").unpack(torch.zeros(1, 100, 4), PipelineCall(pipe, Size(32, 64)))
