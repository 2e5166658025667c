"""The artefacts of the hub that are code: pipelines and blocks are the stock ones, steered or judged."""

import sys
from types import SimpleNamespace

import diffusers as d
import pytest
import torch
from diffusers.utils import dynamic_modules_utils
from helpers import hub_models
from helpers.factories import TinyCLIP, save_tiny_clip
from helpers.hub_models import images_of
from helpers.modular_runs import QWEN, SD3, SDXL, built, run, untouched
from helpers.pipelines import parts

import clip_guidance as cg
from clip_guidance.guidance import CLIPReward

BLOCKS = ["clip-guided-denoise", "clip-judge", "best-of-n"]
CUSTOM = {
    "clip-guided-stable-diffusion": hub_models.SD,
    "clip-guided-sdxl": hub_models.SDXL,
    "clip-guided-sd3": hub_models.SD3,
    "clip-guided-flux": hub_models.FLUX,
}


@pytest.fixture(scope="module")
def code(builder, tmp_path_factory):
    """The folder of all artefacts that are code; what diffusers copies of them lies in a folder of this test."""
    folder, cache = tmp_path_factory.mktemp("hub"), str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", [*sys.path])
        builder.main(builder.Settings(str(folder), "alice", [*BLOCKS, *CUSTOM]))
        yield folder / "alice"
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


@pytest.fixture
def clip():
    torch.manual_seed(1)
    return TinyCLIP().eval()


def block_of(folder, **around):
    return d.ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True, **around)


def modular(key, change, **components):
    """A tiny modular pipeline whose blocks ``change`` has changed, with its inputs."""
    pipe, inputs = built(key)
    changed = change(pipe.blocks).init_pipeline()
    held = {name: part for name in pipe.pretrained_component_names if (part := getattr(pipe, name)) is not None}
    changed.update_components(**held, **components)
    return parts.quiet(changed), inputs


# ---------------------------------------------------------------- remote code


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_refused_by_diffusers_without_trust(code, name):
    for load in (d.ModularPipelineBlocks.from_pretrained, d.ModularPipeline.from_pretrained):
        with pytest.raises(ValueError, match="contains custom code. Pass `trust_remote_code=True` to allow"):
            load(str(code / name))


@pytest.mark.slow
def test_a_pipeline_is_refused_by_diffusers_without_trust(code, tiny_models):
    for name in CUSTOM:
        with pytest.raises(ValueError, match="contains custom code in pipeline.py which must be executed"):
            d.DiffusionPipeline.from_pretrained(tiny_models / hub_models.SD, custom_pipeline=str(code / name))


# ---------------------------------------------------------------- pipelines


@pytest.mark.slow
@pytest.mark.parametrize("name", CUSTOM)
def test_a_pipeline_is_the_stock_one_and_attach(code, tiny_models, name):
    stock = d.DiffusionPipeline.from_pretrained(tiny_models / CUSTOM[name])
    guided = d.DiffusionPipeline.from_pretrained(
        tiny_models / CUSTOM[name], custom_pipeline=str(code / name), trust_remote_code=True
    )
    assert type(guided).__mro__[1] is type(stock)
    clip = cg.CLIP.from_pretrained(tiny_models / hub_models.GUIDE)
    encoded = stock.encode_prompt("dog", **encoding(stock))
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    if name == "clip-guided-flux":
        names = ("prompt_embeds", "pooled_prompt_embeds")  # and the ids of its tokens
    embeds = dict(zip(names, encoded, strict=False))
    for call in ({"prompt": "dog"}, embeds):
        plain = images_of(stock, **call)
        assert images_of(guided, **call).equal(plain)
        assert images_of(guided, clip=clip, clip_prompt="cat", clip_scale=0.0, **call).equal(plain)
        with cg.CLIPGuidance(clip, "cat", 20.0, cutouts=2).attach(stock):
            expected = images_of(stock, **call)
        options = {"clip": clip, "clip_scale": 20.0, "clip_options": {"cutouts": 2}}
        assert images_of(guided, clip_prompt="cat", **options, **call).equal(expected)
        assert not expected.equal(plain)
    with cg.CLIPGuidance(clip, "dog", 20.0, cutouts=2).attach(stock):
        assert images_of(guided, prompt="dog", **options).equal(images_of(stock, prompt="dog"))


def encoding(pipe):
    """The arguments of ``encode_prompt`` that differ from one pipeline to the next."""
    if isinstance(pipe, d.StableDiffusionPipeline):
        return {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    return {} if isinstance(pipe, d.StableDiffusionXLPipeline) else {"prompt_2": None, **third(pipe)}


def third(pipe):
    return {"prompt_3": None} if isinstance(pipe, d.StableDiffusion3Pipeline) else {}


@pytest.mark.slow
def test_what_a_pipeline_cannot_do_is_said(code, tiny_models, clip):
    pipe = d.DiffusionPipeline.from_pretrained(
        tiny_models / hub_models.SD, custom_pipeline=str(code / "clip-guided-stable-diffusion"), trust_remote_code=True
    )
    for options in ({"clip_prompt": "cat"}, {"clip_scale": 2.0}, {"clip_options": {"cutouts": 2}}):
        with pytest.raises(TypeError, match="say how a CLIP steers: give it as clip="):
            pipe("dog", **options)
    with pytest.raises(ValueError, match="towards clip_prompt, or else the prompt: it cannot read prompt_embeds"):
        pipe(prompt_embeds=torch.zeros(1, 4, 16), clip=clip)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("key", [SDXL, *(pytest.param(key, marks=pytest.mark.slow) for key in (SD3, QWEN))])
def test_guided_denoise_is_attach(code, clip, key):
    def guided(blocks):
        denoise = block_of(code / "clip-guided-denoise", denoise=blocks.sub_blocks["denoise"])
        blocks.sub_blocks["denoise"] = denoise
        return blocks

    (stock, inputs), (pipe, _) = built(key), modular(key, guided, clip=clip)
    assert type(pipe) is type(stock)
    if key == SDXL:  # a workflow keeps the block: diffusers would take its parts out, were they sub-blocks
        assert type(pipe.blocks.get_workflow("text2image").sub_blocks["denoise"]).__name__ == "CLIPGuidedDenoise"
    plain = run(stock, inputs)
    assert run(pipe, {**inputs, "clip_prompt": "cat", "clip_scale": 0.0}).equal(plain)
    with cg.CLIPGuidance(clip, "cat", 30.0, cutouts=2).attach(stock):
        expected = run(stock, inputs)
    steered = {**inputs, "clip_prompt": "cat", "clip_scale": 30.0, "clip_options": {"cutouts": 2}}
    assert run(pipe, steered).equal(expected) and not expected.equal(plain)
    untouched(pipe)
    with pytest.raises(ValueError, match="steers towards clip_prompt, or else the prompt; got neither"):
        run(pipe, inputs)
    with pytest.raises(ValueError, match=r"no clip yet: pipe.load_components\('clip'\)"):
        run(pipe, steered, clip=None)


@pytest.mark.slow
def test_best_of_n_ranks_what_each_seed_draws(code, clip):
    pipe, inputs = modular(SDXL, lambda blocks: block_of(code / "best-of-n", blocks=blocks), judge=clip)
    call = {name: value for name, value in inputs.items() if name != "generator"}
    state = pipe(**call, judge_prompt="cat", num_candidates=3, seed=5)
    stock, _ = built(SDXL)
    drawn = {seed: stock(**call, generator=parts.generator(seed)).images[0] for seed in (5, 6, 7)}
    assert pipe.blocks.output_names == ["images", "rewards", "seeds"]
    reward = CLIPReward(clip, "cat")
    expected = {seed: reward(image[None]).item() for seed, image in drawn.items()}
    assert state.seeds == sorted(expected, key=lambda seed: -expected[seed])
    assert all(image.equal(drawn[seed]) for seed, image in zip(state.seeds, state.images, strict=True))
    assert state.rewards == pytest.approx([expected[seed] for seed in state.seeds], rel=1e-5)
    with pytest.raises(ValueError, match="from seed . i: give seed in place of a generator"):
        pipe(state=d.modular_pipelines.PipelineState({"generator": parts.generator()}), **call, judge_prompt="cat")
    with pytest.raises(ValueError, match="ranks by judge_prompt, or else the prompt; got neither"):
        pipe(**call)


@pytest.mark.slow
def test_the_judge_scores_each_image_against_its_prompt(code, tmp_path):
    judge = cg.CLIP.from_pretrained(save_tiny_clip(tmp_path))
    manager = d.ComponentsManager()
    pipe = d.ModularPipeline.from_pretrained(
        str(code / "clip-judge"), trust_remote_code=True, components_manager=manager
    )
    images = [parts.pil_image(seed=seed) for seed in range(4)]
    with pytest.raises(ValueError, match=r"no judge yet: pipe.load_components\('judge'\)"):
        pipe(images=images, prompt="cat")
    pipe.load_components(pretrained_model_name_or_path=str(tmp_path))
    assert type(pipe.judge) is cg.CLIP and pipe.judge.fingerprint() == judge.fingerprint()
    assert manager.get_one(name="judge") is pipe.judge
    expected = cg.clip_score(judge, images, ["cat", "cat", "dog", "dog"])
    assert pipe(images=images, prompt=["cat", "dog"], output="scores").equal(expected)
    assert pipe(images=images, prompt="a", judge_prompt=["cat", "dog"], output="scores").equal(expected)
    with pytest.raises(ValueError, match="clip-judge: 3 prompts cannot be shared out among 4 images"):
        pipe(images=images, prompt=["a", "b", "c"])
    with pytest.raises(ValueError, match="compares images with judge_prompt, or else the prompt; got neither"):
        pipe(images=images)


@pytest.mark.slow
def test_best_of_n_ranks_the_images_of_each_prompt(code, clip):
    pipe, inputs = modular(SDXL, lambda blocks: block_of(code / "best-of-n", blocks=blocks), judge=clip)
    call = {name: value for name, value in inputs.items() if name != "generator"}
    one = pipe(**call, judge_prompt="dog", num_candidates=2)
    for name in ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        call[name] = call[name].repeat(2, *[1] * (call[name].ndim - 1))
    both = pipe(**call, judge_prompt=["cat", "dog"], num_candidates=2)
    assert len(both.images) == len(both.rewards) == len(both.seeds) == 2
    assert both.seeds[1] == one.seeds and both.rewards[1] == pytest.approx(one.rewards, rel=1e-4)
    torch.testing.assert_close(torch.stack(both.images[1]), torch.stack(one.images))
    assert all(each == sorted(each, reverse=True) for each in both.rewards)


def test_what_no_block_goes_around_is_said(code):
    for name, argument in (("clip-guided-denoise", "denoise"), ("best-of-n", "blocks")):
        for wrong in (d.StableDiffusionXLAutoBlocks, "denoise", SimpleNamespace()):
            with pytest.raises(TypeError, match="goes around a block of a modular pipeline, such as .* got ") as caught:
                block_of(code / name, **{argument: wrong})
            assert len(str(caught.value)) <= 300
