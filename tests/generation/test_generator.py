"""Images carry what made them: made again from it they are the same, bit for bit."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.empty_images import spoil
from helpers.factories import save_tiny_clip, save_tiny_pipeline
from PIL import Image

from clip_guidance._tuned import GuidanceDefaults, named_defaults
from clip_guidance.clip import CLIP, hub
from clip_guidance.generation import generator
from clip_guidance.generation import settings as generation_settings
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.generator import ImageGenerator, generate
from clip_guidance.generation.image import FailedImageError, check_image
from clip_guidance.generation.settings import GenerateSettings, WeightedReward, read_settings
from clip_guidance.generation.targets import ImageFile, PlacedTarget
from clip_guidance.guidance import CLIPGuidance, Region
from clip_guidance.images.metadata import read_record
from clip_guidance.metrics.clip_score import clip_score


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> GenerateSettings:
    clip = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    pipeline = save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"), clip)
    return GenerateSettings("a red apple", model=str(pipeline), clip=str(clip), scale=60.0, steps=3, cutouts=2)


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("judge"), seed=1))


def draw(*settings: GenerateSettings, **options):
    return list(generate(settings, **options))


def pixels(generated) -> bytes:
    return generated.image.tobytes()


@pytest.fixture(scope="module")
def unchanged(settings) -> bytes:
    """The pixels that the settings draw as they are."""
    return pixels(draw(settings)[0])


def test_the_strength_that_was_left_open_is_told(settings):
    """Of a pair in no table; each image of a batch has its own, and a strength that was given is none."""
    one, other = (dataclasses.replace(settings, scale=None, cutouts=1, seed=seed) for seed in (0, 1))
    make = ImageGenerator()
    alone, together = make(one), make.batch([one, other])
    assert alone.calibrated > 0 and alone.record()["calibrated_scale"] == alone.calibrated
    assert together[0].calibrated == pytest.approx(alone.calibrated, rel=1e-3) != together[1].calibrated
    (best,) = make.best_of(one, Candidates(2))
    assert best.calibrated in [pytest.approx(each.calibrated, rel=1e-3) for each in together]
    given = make(dataclasses.replace(one, scale=2.0))
    assert given.calibrated is None and "calibrated_scale" not in given.record()


@pytest.mark.slow
def test_an_image_is_made_again_from_its_own_file(settings, judge, tmp_path):
    settings = dataclasses.replace(settings, judge=judge)
    (first,) = draw(settings)
    path = first.save(tmp_path)
    assert path.name == "a-red-apple-0.png"
    assert read_settings(path) == settings.resolved()
    (again,) = draw(read_settings(path))
    assert pixels(again) == pixels(first) == Image.open(path).convert("RGB").tobytes()
    assert again.save(tmp_path) == path and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_neighbours(settings):
    planned = [dataclasses.replace(settings, seed=seed) for seed in (3, 4, 5)]
    together = draw(*planned)
    assert len({pixels(one) for one in together}) == 3
    assert pixels(draw(planned[2])[0]) == pixels(together[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"guidance_scale": 1.0},
        {"steps": 4},
        {"mode": "exact"},
        {"start": 0.5},
        {"stop": 0.3},
        {"every": 2},
        {"cutouts": 1},
        {"damping": 2.0},
        {"particles": 2},
        {"scheduler": "dpm++"},  # not euler, which in exact arithmetic is ddim
        {"negative_prompt": "blue"},
        {"clip_prompt": "a blue boat"},
        {"prompt": "a blue boat", "clip_prompt": "a red apple"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_setting_reaches_the_image(settings, unchanged, change):
    assert pixels(draw(dataclasses.replace(settings, **change))[0]) != unchanged


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> ImageFile:
    path = tmp_path_factory.mktemp("reference") / "red.png"
    Image.new("RGB", (20, 30), "red").save(path)
    return ImageFile.read(str(path))


@pytest.mark.slow
def test_images_and_regions_steer(settings, unchanged, reference):
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    regions = (PlacedTarget("a blue boat", left), PlacedTarget(reference, right))
    asked = [{"clip_images": (reference,)}, {"clip_images": (reference,), "regions": regions}]
    expected = [[(reference.path, 1.0)], [(reference.path, 1.0), *regions]]
    drawn = {unchanged}
    for change, target in zip(asked, expected, strict=True):
        (generated,) = draw(one := dataclasses.replace(settings, **change, steps=2))
        with_paths = [
            Region(each.target if isinstance(each.target, str) else Path(each.target.path), each.box)
            if isinstance(each, PlacedTarget)
            else (Path(each[0]), each[1])
            for each in target
        ]
        pipe = ImageGenerator().pipeline(one)
        options = {"scale": one.scale, "cutouts": one.cutouts, "seed": one.seed}
        with CLIPGuidance(one.clip, with_paths, **options).attach(pipe):
            generator = torch.Generator().manual_seed(0)
            image = pipe(one.prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images[0]
        assert image.tobytes() == pixels(generated)
        drawn.add(pixels(generated))
    assert len(drawn) == 3


def test_scores_are_those_of_the_image_and_tell_guide_from_judge(settings, judge):
    (generated,) = draw(dataclasses.replace(settings, clip_prompt="a blue boat", judge=judge))
    guide_score, judge_score = generated.scores
    for record, folder in ((guide_score, settings.clip), (judge_score, judge)):
        expected = clip_score(CLIP.from_pretrained(folder), generated.image, "a blue boat").item()
        assert record["score"] == pytest.approx(expected, abs=1e-4)
        assert record["model"] == folder and record["definition"] == "torchmetrics"
    assert (guide_score["guided"], judge_score["guided"]) == (True, False)
    assert generated.guide["fingerprint"] == guide_score["fingerprint"] != judge_score["fingerprint"]


def test_the_record_is_in_the_file(settings, tmp_path):
    (generated,) = draw(settings)
    record = read_record(generated.save(tmp_path))
    assert record == generated.record()
    assert set(record["versions"]) == {"clip_guidance", "torch", "diffusers"}


def test_without_guidance_there_is_no_guide(settings, judge):
    (generated,) = draw(dataclasses.replace(settings, scale=0.0))
    assert generated.guide is None and not generated.scores[0]["guided"]
    (generated,) = draw(dataclasses.replace(settings, scale=0.0, clip=None, judge=judge))
    assert [score["model"] for score in generated.scores] == [judge]


@pytest.mark.slow
def test_a_packaged_pipeline_brings_its_guide_and_its_judge(settings, judge, tmp_path, monkeypatch):
    for name, folder in (("emoji", settings.clip), ("emoji-judge", judge)):
        shutil.copytree(folder, tmp_path / name / "clip")
    monkeypatch.setattr(hub, "PACKAGED", tmp_path)
    load = generator.load_pipeline
    folders = {"emoji": settings.model}
    monkeypatch.setattr(generator, "load_pipeline", lambda name, device: load(folders.get(name, name), device))
    tuned = GuidanceDefaults(7.0, "exact", 0.25, 0.0, 0.75)
    monkeypatch.setattr(generation_settings, "named_defaults", lambda *_: tuned)
    (packaged,) = draw(GenerateSettings("a red apple", steps=2))
    named = dataclasses.replace(settings, judge=judge, steps=2, cutouts=1, **dataclasses.asdict(tuned))
    assert pixels(packaged) == pixels(draw(named)[0])
    assert [score["model"] for score in packaged.scores] == ["emoji", "emoji-judge"]
    assert [score["guided"] for score in packaged.scores] == [True, False]


def test_what_suits_the_models_is_taken_unless_given():
    def resolved(**given):
        found = GenerateSettings("a cat", **given).resolved()
        assert found.resolved() == found
        return {name: getattr(found, name) for name in ("scale", "mode", "damping", "start", "stop")}

    tuned = dataclasses.asdict(named_defaults("emoji", "emoji"))
    assert tuned == {"scale": 10.0, "mode": "blend", "damping": 0.0, "start": 0.0, "stop": 1.0}
    assert resolved() == resolved(clip="emoji") == tuned
    assert resolved(scale=3.0, start=0.5) == tuned | {"scale": 3.0, "start": 0.5}
    assert resolved(scale=0.0)["scale"] == 0  # off is given too
    without_tower = tuned | {"mode": "x0"}
    assert resolved(mode="x0") == without_tower  # of each mode its own
    assert resolved(mode="noisy") == tuned | {"mode": "noisy", "scale": 5.0}
    assert resolved(regions=(PlacedTarget("a cat", (0.0, 0.0, 0.5, 1.0)),)) == without_tower
    assert resolved(rewards=(WeightedReward("pickscore"),)) == without_tower
    general = {"scale": None, "mode": "x0", "damping": 0.0, "start": 0.0, "stop": 1.0}
    assert resolved(model="another") == resolved(clip="another") == general


def test_a_missing_judge_is_told_before_the_image_is_drawn(settings, tmp_path):
    steps: list[int] = []
    with pytest.raises(ValueError, match="nowhere: neither a folder"):
        draw(dataclasses.replace(settings, judge=str(tmp_path / "nowhere")), on_step=lambda: steps.append(1))
    assert not steps


def test_a_pipeline_without_a_clip_needs_one_named(settings):
    with pytest.raises(ValueError, match="comes without a CLIP: name the one that steers it"):
        draw(dataclasses.replace(settings, clip=None))


@pytest.mark.slow
def test_another_image_of_the_same_name_is_kept(settings, tmp_path):
    (first,) = draw(settings)
    (other,) = draw(dataclasses.replace(settings, steps=2))
    paths = [one.save(tmp_path) for one in (first, other, first, other)]
    assert [path.name for path in paths] == ["a-red-apple-0.png", "a-red-apple-0-2.png"] * 2
    assert read_settings(paths[1]).steps == 2


def test_steps_are_counted(settings):
    ticks: list[int] = []
    draw(settings, on_step=lambda: ticks.append(1))
    assert len(ticks) == settings.steps


@pytest.mark.parametrize(
    "values,message",
    [
        ({"prompt": " "}, "a prompt with at least one word, got ' '"),
        ({"prompt": "a", "steps": 0}, "steps must be from 1 to 10,000, got 0"),
        ({"prompt": "a", "scheduler": "ddmp"}, r"scheduler must be one of ddim, ddpm, .*, tcd, got 'ddmp'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        GenerateSettings(**values)


def test_an_image_of_another_program_has_no_settings(tmp_path):
    path = tmp_path / "plain.png"
    Image.new("RGB", (2, 2)).save(path)
    assert read_record(path) is None and read_record(tmp_path / "gone.png") is None
    with pytest.raises(ValueError, match=r"plain\.png: holds no clip_guidance settings"):
        read_settings(path)


def test_a_name_without_letters_still_saves(settings, tmp_path):
    (generated,) = draw(settings)
    generated.settings = dataclasses.replace(settings, prompt="../!?", seed=9)
    assert generated.save(tmp_path / "new") == Path(tmp_path / "new" / "image-9.png")


# ---------------------------------------------------------------- images that came out empty


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:prompt of 902 tokens")
def test_latents_that_are_not_finite_fail_by_their_step(settings, unchanged):
    make, calls = ImageGenerator(), []
    long = dataclasses.replace(settings, prompt="a red apple " * 100, scale=0.0)

    def overflow(unet, args, output):
        calls.append(0)
        return (output[0] * math.inf,) if len(calls) == 2 else output

    hook = make.pipeline(settings.resolved()).unet.register_forward_hook(overflow)
    message = r"the image of 'a red app.*' \(seed 0\) is not finite after step 2 of 3: a strength that is too large"
    with pytest.raises(FailedImageError, match=message) as caught:
        make(long)
    assert len(str(caught.value)) <= 300 and len(calls) == 2
    hook.remove()
    assert pixels(make(settings)) == unchanged


def test_only_an_image_of_one_color_is_empty():
    settings = GenerateSettings("a red apple", seed=3, guidance_scale=20.0)
    for color in ((0, 0, 0), (255, 255, 255), (7, 8, 9)):
        image = Image.new("RGB", (4, 4), color)
        message = rf"\(seed 3\) is of one color, \({color[0]}, .*guidance_scale 20.0"
        with pytest.raises(FailedImageError, match=message):
            check_image(image, settings)
        image.putpixel((1, 2), (color[0] ^ 1, *color[1:]))
        check_image(image, settings)


def test_an_image_that_fails_costs_itself_alone(settings, unchanged, monkeypatch):
    spoil(monkeypatch, 1)
    make = ImageGenerator()
    with pytest.raises(FailedImageError, match=r"\(seed 1\) is of one color, \(0, 0, 0\)"):
        make(dataclasses.replace(settings, seed=1))
    assert pixels(make(settings)) == unchanged
