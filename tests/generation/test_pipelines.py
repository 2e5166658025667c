"""Loading pipelines: folders that diffusers saved, and what is refused."""

import shutil

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
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
    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(
        cg.ModelError,
        match=r"unet: its weights are pickled \(diffusion_pytorch_model.bin\); expected model.safetensors",
    ):
        cg.load_pipeline(copy)


@pytest.mark.slow
def test_options_of_the_hub_reach_every_part(folder, tmp_path):
    """``main`` and ``v1`` are other weights; a subfolder, on the hub or on disk, is the pipeline in it."""
    root = folder.parent
    other = save_tiny_pipeline(tmp_path / "other", root / "clip", seed=1)
    main = tmp_path / "main"
    shutil.copytree(folder, main)
    shutil.copytree(other, main / "inner")
    cache = tmp_path / "cache" / "models--owner--pipe"
    (cache / "refs").mkdir(parents=True)
    for revision, source in (("main", main), ("v1", other)):
        (cache / "refs" / revision).write_text(revision[0] * 40)
        shutil.copytree(source, cache / "snapshots" / (revision[0] * 40))
    cached = {"cache_dir": cache.parent, "local_files_only": True}

    def weight(source, **options):
        return cg.load_pipeline(source, **options).unet.conv_in.weight

    first, second = weight(folder), weight(other)
    assert not torch.equal(first, second)
    for name in ("owner/pipe", "hf-hub:owner/pipe"):
        assert torch.equal(weight(name, **cached), first)
        assert torch.equal(weight(name, revision="v1", **cached), second)
    assert torch.equal(weight("owner/pipe", subfolder="inner", **cached), second)
    assert torch.equal(weight(main, subfolder="inner"), second)
    assert torch.equal(weight(f"local-dir:{folder}", torch_dtype="float64"), first.double())
    with pytest.raises(cg.ModelError, match="owner/pipe: no pipeline: expected model_index.json on the hub or in its"):
        cg.load_pipeline("owner/pipe", revision="v2", **cached)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"revison": "v1"}, TypeError, r"load_pipeline: unknown option revison; did you mean revision or "),
        ({"schedular": None}, TypeError, r"load_pipeline: unknown option schedular; did you mean scheduler"),
        ({"revision": "v1"}, ValueError, "a folder has no revisions, got 'v1'"),
        ({"dtype": "int8"}, ValueError, "dtype: expected a floating-point type"),
        ({"device": "meta"}, ValueError, "device meta: its tensors have no values"),
    ],
)
def test_options_that_cannot_act_are_refused(folder, options, error, message):
    with pytest.raises(error, match=message):
        cg.load_pipeline(folder, **options)


def test_parts_and_options_of_diffusers_are_passed_on(folder):
    scheduler = EulerDiscreteScheduler(steps_offset=1)
    assert cg.load_pipeline(folder, scheduler=scheduler, variant=None).scheduler is scheduler
    with pytest.raises(ValueError, match="emoji is packaged and takes no further options, got variant"):
        cg.load_pipeline("emoji", variant="fp16")
    with pytest.raises(TypeError, match="unknown option schedular"):
        cg.load_pipeline("emoji", schedular=scheduler)


def test_an_index_that_is_no_json_object_is_a_sentence(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for text, message in (("[" * 100_000, "is JSON that is nested too deeply"), ("[]", "holds a list, expected")):
        (copy / "model_index.json").write_text(text)
        with pytest.raises(cg.ModelError, match=f"copy: its model_index.json {message}"):
            cg.load_pipeline(copy)
