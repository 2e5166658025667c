"""A guidance is saved and loaded by its config, alone and with its pipeline."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ComponentsManager, ModularPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
)
from helpers.factories import save_tiny_clip
from helpers.modular_runs import QWEN, SD3, built, redness, run
from helpers.pipelines import modular
from PIL import Image

from clip_guidance import CLIP
from clip_guidance.guidance import CLIPGuidance, Cutouts, Decoding, Guidance, Region

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved CLIP."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return CLIP.from_pretrained(folder)


OPTIONS = [
    {},
    {"target": ["a red apple", "a green pear"], "scale": [1.0, -2.0]},
    {"target": {"a photo": -0.5, "a red apple": 1.0}, "scale": 3},
    {"cutouts": Cutouts(3, seed=4, smallest=0.7, flip=False, jitter=0.1, noise=0.02), "chunk": 2},
    {"cutouts": 3, "seed": 7},
    {"mode": "exact", "start": 0.1, "stop": 0.9, "every": 2, "data_variance": 0.5, "cap": 2.0, "damping": 0.1},
    {"decoding": Decoding(resolution=0.5, crop=0.8, checkpoint=True, images=1, dtype=torch.bfloat16, seed=3)},
    {"decoding": Decoding(frames=(0, -1))},
    {"guider": ClassifierFreeGuidance(3.0, guidance_rescale=0.2)},
    {"guider": AdaptiveProjectedGuidance(adaptive_projected_guidance_norm_dim=(-1, -2))},
    {"guider": PerturbedAttentionGuidance(perturbed_guidance_layers=[0, 2])},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
def test_what_is_saved_is_what_is_loaded(tmp_path, clip, options):
    guidance = CLIPGuidance(clip, **{"target": PROMPT, **options})
    guidance.save_pretrained(tmp_path)
    for loaded in (CLIPGuidance.from_pretrained(tmp_path), CLIPGuidance.from_config(guidance.config), guidance.new()):
        assert type(loaded) is CLIPGuidance
        assert repr(loaded) == repr(guidance)
        assert loaded.target == guidance.target
        assert loaded.reward.cutouts == guidance.reward.cutouts and loaded.reward.chunk == guidance.reward.chunk
        torch.testing.assert_close(loaded.reward.target_embeds, guidance.reward.target_embeds)
        assert loaded.reward.clip.fingerprint() == clip.fingerprint()
        assert loaded.config == guidance.config
    assert type(loaded.guider) is type(guidance.guider)
    if guidance.guider is not None:
        assert json.loads(loaded.guider.to_json_string()) == json.loads(guidance.guider.to_json_string())


def test_the_file_is_plain_json_in_the_words_of_the_arguments(tmp_path, folder, clip):
    CLIPGuidance(clip, PROMPT, 2.0, guider=ClassifierFreeGuidance(3.0)).save_pretrained(tmp_path)
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert file.name == "guider_config.json" and saved["_class_name"] == "CLIPGuidance"
    assert (saved["clip"], saved["target"], saved["scale"]) == (str(folder), PROMPT, 2.0)
    assert saved["cutouts"]["count"] == 1 and saved["guider"]["guidance_scale"] == 3.0


def test_a_guidance_goes_around_another_in_the_config_too(tmp_path, clip):
    inner = CLIPGuidance(clip, "a green pear", 2.0, guider=ClassifierFreeGuidance(4.0))
    CLIPGuidance(clip, PROMPT, guider=inner).save_pretrained(tmp_path)
    loaded = CLIPGuidance.from_pretrained(tmp_path)
    assert loaded.guider.config == inner.config and loaded.guider.guider.guidance_scale == 4.0


def test_arguments_take_the_place_of_what_was_saved(folder, clip):
    config = CLIPGuidance(clip, PROMPT, cutouts=3, guider=ClassifierFreeGuidance(3.0)).config
    loaded = CLIPGuidance.from_config({**config, "clip": "nowhere"}, clip=clip, scale=5.0, cutouts=2, guider=None)
    assert loaded.reward.clip is clip
    assert (loaded.scale, loaded.reward.cutouts.count, loaded.guider) == (5.0, 2, None)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_clip_may_be_named(folder, clip, kind):
    guidance = CLIPGuidance(kind(folder), PROMPT)
    assert guidance.reward.clip.fingerprint() == clip.fingerprint()
    assert guidance.config == CLIPGuidance(clip, PROMPT).config


def test_a_clip_that_is_named_follows_the_pipeline_and_one_that_is_given_does_not(folder, clip):
    pipe = SimpleNamespace(_execution_device=torch.device("meta"))
    for source, device in ((folder, "meta"), (clip, "cpu")):
        guidance = CLIPGuidance(source, PROMPT)
        guidance.prepare(pipe)
        assert guidance.reward.clip.device.type == guidance.reward.target_embeds.device.type == device


def test_the_packaged_clip_has_a_name(tmp_path):
    CLIPGuidance("emoji", PROMPT).save_pretrained(tmp_path)
    assert CLIPGuidance.from_pretrained(tmp_path).config["clip"] == "emoji"


def test_images_and_regions_are_saved_by_path(tmp_path, clip):
    path = tmp_path / "reference.png"
    Image.new("L", (8, 8), 200).save(path)
    targets = [
        path,
        {path: 1.0, PROMPT: -0.5},
        [Region({path: 2.0}, (0, 0, 0.5, 1), weight=0.5), Region(PROMPT, path), (path, 3), "a photo"],
        [path, {PROMPT: 2.0}, [Region(PROMPT, (0.5, 0, 1, 1))]],
    ]
    for target in targets:
        guidance = CLIPGuidance(clip, target)
        config = json.loads(json.dumps(guidance.config))
        loaded = CLIPGuidance.from_config(config, clip=clip)
        assert loaded.config == guidance.config
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(loaded.reward(images), guidance.reward(images))
    assert CLIPGuidance(clip, path).config["target"] == {"_class_name": "Path", "path": str(path)}


def test_a_config_of_an_earlier_version_names_its_target_prompt(clip):
    config = CLIPGuidance(clip, PROMPT).config
    config["prompt"] = config.pop("target")
    assert CLIPGuidance.from_config(config).target == PROMPT
    assert CLIPGuidance.from_config(config, target="a pear").target == "a pear"
    assert CLIPGuidance.from_config(config, prompt="a pear").target == "a pear"


# ---------------------------------------------------------------- with the pipeline


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_modular_pipeline_is_saved_with_its_guider(tmp_path, clip):
    pipe, inputs = modular.PIPELINES[QWEN]()
    guidance = CLIPGuidance(clip, PROMPT, 30.0, cutouts=2, guider=ClassifierFreeGuidance(3.0))
    expected = run(pipe, inputs, guider=guidance)
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    loaded = ModularPipeline.from_pretrained(str(tmp_path), components_manager=ComponentsManager())
    loaded.load_components()
    assert type(loaded.guider) is CLIPGuidance and loaded.guider.config == guidance.config
    fresh, _ = modular.PIPELINES[QWEN]()  # without a text encoder
    fresh.update_components(transformer=loaded.transformer, vae=loaded.vae)
    torch.testing.assert_close(run(fresh, inputs, guider=loaded.guider), expected)


# ---------------------------------------------------------------- what cannot be saved


class OwnGuider(ClassifierFreeGuidance):
    pass


IN_MEMORY = "a config holds no images: a .* in memory, as a target or a mask, cannot be saved. Pass the pathlib.Path"
UNSAVED = [
    ({"target": Image.new("RGB", (4, 4))}, TypeError, IN_MEMORY),
    ({"target": {torch.zeros(3, 4, 4): 1.0, PROMPT: 2.0}}, TypeError, IN_MEMORY),
    ({"target": [Region(PROMPT, torch.ones(4, 4))]}, TypeError, IN_MEMORY),
    ({"schedule": lambda fraction: 1.0}, TypeError, "schedule is code, which a config does not hold"),
    ({"to_image": lambda sample: sample}, TypeError, "to_image is code, which a config does not hold"),
    ({"decoding": Decoding(torch.nn.Identity())}, TypeError, "decoding.decoder, a Identity, cannot be saved"),
    ({"guider": Guidance(redness)}, TypeError, "a Guidance cannot be saved, since its reward is code"),
    ({"guider": OwnGuider()}, TypeError, "OwnGuider, the guider inside, cannot be saved: .* diffusers.guiders"),
]


@pytest.mark.parametrize(("options", "error", "message"), UNSAVED)
def test_what_cannot_be_saved_is_refused_when_it_is(tmp_path, clip, options, error, message):
    guidance = CLIPGuidance(clip, **{"target": PROMPT, **options})
    with pytest.raises(error, match=message) as caught:
        guidance.save_pretrained(tmp_path)
    assert len(str(caught.value)) <= 300


def test_a_plain_reward_works_but_cannot_be_saved(tmp_path):
    pipe, inputs = built(SD3)
    run(pipe, inputs, guider=Guidance(redness))
    with pytest.raises(TypeError, match="a Guidance cannot be saved, since its reward is code; a CLIPGuidance can"):
        pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)


def test_a_clip_that_was_not_loaded_works_but_cannot_be_saved(tmp_path, clip):
    made = CLIP(clip.config, clip.tokenizer, clip.image_processor)
    made.name_or_path = ""
    guidance = CLIPGuidance(made, PROMPT)
    with pytest.raises(ValueError, match="this CLIP was not loaded from anywhere: .*clip.save_pretrained"):
        guidance.save_pretrained(tmp_path)


def test_another_guiders_config_is_refused(tmp_path):
    ClassifierFreeGuidance(3.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config of a CLIPGuidance, with its clip and target, got .*guidance_scale"):
        CLIPGuidance.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["NoGuider", "ClassifierFreeGuidance.__init__", "annotations"])
def test_a_guider_inside_that_is_unknown_is_refused(clip, name):
    config = {**CLIPGuidance(clip, PROMPT).config, "guider": {"_class_name": name}}
    with pytest.raises(ValueError, match=f"guider inside was a {name}; expected CLIPGuidance or a class of diffusers"):
        CLIPGuidance.from_config(config)


def test_a_guider_is_what_diffusers_takes_for_one(clip):
    assert isinstance(CLIPGuidance(clip, PROMPT), BaseGuidance)
