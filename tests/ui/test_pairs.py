"""Pairs of images on the page, on the packaged models and without a browser."""

import dataclasses
import threading

import numpy as np
import pytest
from helpers.pipelines import unet_pixels
from PIL import Image

from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.generator import generate
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.generation.settings import GenerateSettings, read_settings
from clip_guidance.images.metadata import read_record

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")


from clip_guidance.ui import pairs
from clip_guidance.ui.history import record
from clip_guidance.ui.pairs import STOPPED, Request, _caption, generate_pairs
from clip_guidance.ui.preview import Finished, Preview, generate_with_previews, show_previews

PROMPT, STEPS = "a noto picture of a rocket", 3


@pytest.fixture(scope="module")
def shown(state):
    return list(generate_pairs(state, Request(PROMPT, seed=7, steps=STEPS, strength=12.0)))


@pytest.mark.slow
def test_both_images_are_drawn_from_the_same_noise_with_their_settings_in_them(shown):
    sides = shown[-1].pair.without, shown[-1].pair.guided
    settings = [read_settings(side.file) for side in sides]
    assert [each.scale for each in settings] == [0.0, 12.0]
    assert dataclasses.replace(settings[0], scale=12.0) == settings[1]
    assert (settings[1].prompt, settings[1].seed, settings[1].steps) == (PROMPT, 7, STEPS)
    assert sides[0].file.read_bytes() != sides[1].file.read_bytes()
    assert [read_record(side.file)["scores"][0]["guided"] for side in sides] == [False, True]


@pytest.mark.slow
def test_the_images_are_those_of_the_command_line(shown):
    settings = [GenerateSettings(PROMPT, seed=7, steps=STEPS, scale=scale) for scale in (0.0, 12.0)]
    for side, expected in zip((shown[-1].pair.without, shown[-1].pair.guided), generate(settings), strict=True):
        assert side.file.read_bytes() == expected.to_png()


@pytest.mark.slow
def test_each_image_is_the_best_of_its_candidates_with_the_damping_that_was_asked_for(state):
    request = Request(PROMPT, seed=7, steps=STEPS, strength=12.0, best_of=3, damping="0.5")
    pairs = [drawing.pair for drawing in generate_pairs(state, request)]
    steps = [pair.without.caption for pair in pairs if pair.without.caption.startswith("step")]
    assert steps[0] == f"step 1 of {3 * STEPS}"
    for side, scale in ((pairs[-1].without, 0.0), (pairs[-1].guided, 12.0)):
        settings = GenerateSettings(PROMPT, seed=7, steps=STEPS, scale=scale, damping=0.5)
        (expected,) = state.generator.best_of(settings, Candidates(3))
        assert side.file.read_bytes() == expected.to_png()
        assert read_settings(side.file).damping == 0.5
        assert f"the best of 3 candidates, seed {expected.settings.seed}" in side.caption
    assert "which chose it" in pairs[-1].without.caption


@pytest.mark.slow
def test_each_image_is_the_best_of_its_particles(state):
    *_, drawing = generate_pairs(state, Request(PROMPT, seed=7, steps=5, strength=12.0, particles=2))
    pair = drawing.pair
    settings = GenerateSettings(PROMPT, seed=7, steps=5, scale=12.0, particles=2)
    assert read_record(pair.guided.file) == state.generator(settings).record()
    assert "the best of 2 candidates" in pair.without.caption and pair.without.image != pair.guided.image


@pytest.mark.slow
def test_previews_come_before_the_images(shown):
    pairs = [drawing.pair for drawing in shown]
    assert pairs[0].without.image is None
    for name in ("without", "guided"):
        sides = [getattr(pair, name) for pair in pairs]
        previews = [side for side in sides if side.image is not None and side.file is None]
        assert previews and previews[0].caption == f"step 1 of {STEPS}"
    assert all(pair.without.file for pair in pairs if pair.guided.image)  # one after the other


def test_the_last_preview_is_the_image(state):
    """DDIM with a final ᾱ of 1 ends on the last x̂₀, which guidance has shifted already."""
    settings = GenerateSettings(PROMPT, steps=STEPS, scale=12.0)
    *previews, finished = generate_with_previews(state.generator, settings, share=1.0)
    assert isinstance(finished, Finished) and [preview.step for preview in previews] == [1, 2, 3]
    last, image = (np.asarray(each).astype(int) for each in (previews[-1].image, finished.generated.image))
    assert np.abs(last - image).max() <= 1
    assert np.abs(np.asarray(previews[0].image).astype(int) - image).max() > 30


def test_the_steps_of_a_scheduler_by_another_name_are_previewed():
    pipe, inputs = unet_pixels.PIPELINES["UnCLIPPipeline"]()
    shown = []
    with show_previews(pipe, shown.append):
        pipe(**inputs)
    assert [preview.step for preview in shown] == list(range(1, inputs["decoder_num_inference_steps"] + 1))
    assert all("step" not in vars(getattr(pipe, f"{name}_scheduler")) for name in ("prior", "decoder", "super_res"))


def test_an_image_that_nobody_waits_for_stops_and_leaves_nothing_behind(state):
    threads = threading.active_count()
    generation = generate_with_previews(state.generator, GenerateSettings(PROMPT, steps=1000, scale=0.0), share=1.0)
    assert next(generation).step == 1
    generation.close()
    assert threading.active_count() == threads
    pipe = state.generator.pipeline(GenerateSettings(PROMPT))
    assert "step" not in vars(pipe.scheduler)
    assert pipe.scheduler.num_inference_steps == 1000  # it was that run, and it cannot have ended in time


@pytest.mark.parametrize("change", [{}, {"images": 2}, {"best_of": 2}, {"particles": 2}], ids=str)
def test_a_run_that_is_stopped_ends_at_its_next_step_and_says_so_last(state, change):
    stopping = threading.Event()
    run = generate_pairs(state, Request(PROMPT, steps=1000, **change), stopping)
    assert next(run).pair.without.caption == ""
    assert next(run).pair.without.caption.startswith("step 1 of ")
    stopping.set()
    *_, last = run
    assert last.pair.without.caption.startswith("stopped at step ") and last.pair.without.image
    assert (last.pair.without.file, last.pair.guided.caption, last.progress, last.done) == (None, "", "", None)
    assert last.notes == (STOPPED,)
    pipe = state.generator.pipeline(GenerateSettings(PROMPT))
    assert pipe.scheduler.num_inference_steps == 1000 and "step" not in vars(pipe.scheduler)


def test_a_run_that_is_stopped_keeps_the_image_that_was_finished(state):
    stopping = threading.Event()
    run = generate_pairs(state, Request(PROMPT, steps=STEPS), stopping)
    finished = next(drawing for drawing in run if drawing.pair.without.file)
    stopping.set()
    *_, last = run
    assert last.pair.without == finished.pair.without and last.pair.guided.file is None and last.notes == (STOPPED,)


def test_a_run_that_fails_on_its_way_looks_ended_before_the_error_is_told(state, monkeypatch):
    def fails(*_, **__):
        yield Preview(Image.new("RGB", (8, 8)), 3)
        raise RuntimeError("no memory")

    monkeypatch.setattr(pairs, "generate_with_previews", fails)
    run = generate_pairs(state, Request(PROMPT, steps=STEPS))
    _, step, last = next(run), next(run), next(run)
    assert step.pair.without.caption == "step 3 of 3" and "<progress" in step.progress
    assert last.pair.without.caption == "stopped at step 3 of 3" and last.progress == ""
    with pytest.raises(RuntimeError, match="no memory"):
        next(run)


def test_a_long_prompt_is_told(state):
    *_, finished = generate_with_previews(state.generator, GenerateSettings("rocket " * 200, steps=1, scale=0.0))
    assert any("cut to the context" in message for message in finished.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "Prompt is empty: type what is to be drawn, or choose an example"),
        ({"seed": 1.5}, r"Seed must be a whole number, got 1\.5"),
        ({"seed": None}, "Seed is empty: type a number from -9,223"),
        ({"seed": float("inf")}, "Seed must be from -9,223,372,036,854,775,808 to 9,223,372,036,854,775,807, got inf"),
        ({"steps": float("nan")}, "Steps must be from 1 to 10,000, got nan"),
        ({"strength": 1e30}, "Strength must be from -10,000.0 to 10,000.0"),
        ({"guidance_scale": None}, "Classifier-free guidance is empty"),
        ({"images": 17}, "Images must be from 1 to 16, got 17"),
        ({"best_of": 0}, "Best of must be from 1 to 64, got 0"),
        ({"best_of": 1.5}, r"Best of must be a whole number, got 1\.5"),
        ({"particles": 0}, "Particles must be from 1 to 64, got 0"),
        ({"particles": 2, "best_of": 2}, "Best of and Particles exclude each other: set one of them to 1"),
        ({"damping": "-1"}, "Damping must be from 0.0 to 10,000.0, got -1.0"),
        ({"damping": "much"}, "Damping must be a number, or empty for the default, got 'much'"),
        ({"targets": [("gone.png", None)]}, "gone.png: no such file"),
        ({"model": "emoji-judge"}, "emoji-judge: a CLIP without a pipeline"),
    ],
)
def test_what_cannot_be_drawn_is_told_with_the_name_of_its_field(state, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        list(generate_pairs(state, Request(**{"prompt": PROMPT, "steps": 1} | change)))


@pytest.mark.slow
def test_several_pairs_take_other_seeds_and_go_into_the_history_newest_first(state):
    request = Request(PROMPT, "blue", seed=3, images=2, steps=1, strength=0.0, guidance_scale=2.0)
    history, shown = [], list(generate_pairs(state, request))
    for drawing in shown:
        history = record(history, drawing)
    assert [entry.request for entry in history] == [
        dataclasses.replace(request, seed=seed, images=1) for seed in (4, 3)
    ]
    for entry in history:
        settings = read_settings(entry.pair.guided.file)
        assert (settings.seed, settings.negative_prompt, settings.guidance_scale) == (entry.request.seed, "blue", 2.0)
        assert entry.caption == f"seed {settings.seed}, strength 0, {PROMPT}"
    assert 'value="0"' in shown[0].progress and "image 1 of 2, without guidance: step 0 of 1" in shown[0].progress
    assert shown[-1].progress == "" and shown[-1].done


def test_no_two_pairs_share_a_candidate(state):
    request = Request(PROMPT, seed=5, images=3, best_of=4)
    assert [settings.seed for settings in request.settings(state)] == [5, 9, 13]


def test_an_image_is_steered_to_in_place_of_the_prompt(state, files):
    (settings,) = Request(PROMPT, targets=files[:1]).settings(state)
    assert [file.path for file in settings.clip_images] == [files[0][0]] and settings.clip_prompt is None


def test_a_calibrated_strength_is_no_number(state):
    """A pair that is in no table keeps None, for which the generator calibrates."""
    (settings,) = Request(PROMPT, calibrate=True, strength=5.0).settings(state)
    assert settings.scale is None


def test_the_caption_tells_what_a_calibrated_strength_came_to():
    settings = GenerateSettings(PROMPT, model="emoji")
    captions = [_caption(GeneratedImage(Image.new("RGB", (8, 8)), settings, calibrated=x)) for x in (7.256, None)]
    assert captions == ["strength 7.26, calibrated", ""]
