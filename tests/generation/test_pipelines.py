"""Loading pipelines: folders that diffusers saved, and what is refused."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.factories import save_tiny_clip, save_tiny_pipeline

import clip_guidance as cg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    return save_tiny_pipeline(root / "pipeline", save_tiny_clip(root / "clip"))


def test_loads_a_stock_pipeline(folder):
    pipe = cg.load_pipeline(folder, dtype=torch.float64)
    assert type(pipe) is StableDiffusionPipeline
    assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float64}


def test_folders_that_are_no_pipeline(tmp_path):
    with pytest.raises(cg.ModelError, match="no pipeline: expected model_index.json, found nothing"):
        cg.load_pipeline(tmp_path)
    with pytest.raises(cg.ModelError, match=r"nowhere: neither a folder, nor a packaged pipeline"):
        cg.load_pipeline("nowhere")
    torch.save({}, tmp_path / "model.ckpt")
    with pytest.raises(cg.ModelError, match="a .ckpt checkpoint is a pickle"):
        cg.load_pipeline(tmp_path / "model.ckpt")


def test_a_pipeline_with_pickled_weights_is_refused(folder, tmp_path):
    import shutil

    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(
        cg.ModelError,
        match=r"unet: its weights are pickled \(diffusion_pytorch_model.bin\); expected model.safetensors",
    ):
        cg.load_pipeline(copy)
