"""CLIPGuidance on the tiny pipeline: what its arguments do, and which are refused."""

import inspect
import re

import pytest
import torch
from helpers.factories import generate
from helpers.minimal_pipeline import modes, schedulers

from clip_guidance.guidance import CLIPGuidance, CLIPReward, Guidance


def test_the_text_is_encoded_once(clip, tiny_pipeline):
    guidance = CLIPGuidance(clip, ("dog", "cat"), cutouts=3)
    pipe = tiny_pipeline()
    for _ in range(2):
        with guidance.attach(pipe):
            generate(pipe, ["a", "b"], seeds=(0, 1))
    assert clip.encoded_texts == ["dog", "cat"]


def clip_logit(clip, images):
    with torch.no_grad():
        return CLIPReward(clip, "dog")(images).mean().item()


@schedulers
@modes
def test_the_reward_rises_with_the_scale(tiny_pipeline, clip, mode, scheduler):
    pipe = tiny_pipeline(scheduler)
    rewards = []
    for scale in (-1.0, 0.0, 1.0, 2.0):
        with CLIPGuidance(clip, "dog", scale, mode=mode).attach(pipe):
            rewards.append(clip_logit(clip, generate(pipe, "cat", seeds=(0, 1), steps=5, output_type="pt",
                                                     num_images_per_prompt=2)))  # fmt: skip
    assert rewards == sorted(rewards) and len(set(rewards)) == 4


def test_the_report_shows_the_rewards_of_the_run(tiny_pipeline, clip):
    pipe, guidance = tiny_pipeline(), CLIPGuidance(clip, "dog", scale=2.0)
    with guidance.attach(pipe) as attached:
        images = generate(pipe, seeds=(0, 1), num_images_per_prompt=2, steps=6, output_type="pt")
    assert attached is guidance
    curve = torch.stack(guidance.report.rewards)
    assert curve.shape == (6, 2)
    assert not curve.requires_grad
    assert curve[-1].mean().item() < clip_logit(clip, images)  # it is taken before the step's own shift


@pytest.mark.slow
def test_seed_chooses_the_cutouts_and_nothing_else(tiny_pipeline, clip):
    pipe = tiny_pipeline()

    def run(**options):
        with CLIPGuidance(clip, "dog", **options).attach(pipe):
            return generate(pipe)

    assert run(cutouts=3, seed=1).equal(run(cutouts=3, seed=1))
    assert not run(cutouts=3, seed=1).equal(run(cutouts=3, seed=2))
    assert run(seed=1).equal(run(seed=2))


def test_clip_guidance_is_guidance_with_clips_reward(tiny_pipeline, clip):
    pipe = tiny_pipeline()
    options = {"scale": 2.0, "mode": "exact", "start": 0.2, "stop": 0.9, "every": 2, "data_variance": 0.5}
    with CLIPGuidance(clip, "dog", **options).attach(pipe):
        expected = generate(pipe)
    with Guidance(CLIPReward(clip, "dog"), **options).attach(pipe):
        assert generate(pipe).equal(expected)


# ---------------------------------------------------------------- arguments


BAD_TARGETS = [
    ("", ValueError, "the target is empty"),
    (["dog", " \n"], ValueError, "target 1 is empty"),
    ([], ValueError, "empty list"),
    (["dog", 3], TypeError, "target 1 must be a text"),
]


@pytest.mark.parametrize(("target", "error", "message"), BAD_TARGETS)
def test_bad_targets_are_refused(clip, target, error, message):
    with pytest.raises(error, match=message):
        CLIPGuidance(clip, target)


def test_the_former_name_of_the_target_is_taken_and_never_overrules_it(clip):
    for cls in (CLIPGuidance, CLIPReward):
        one = cls(clip, prompt="dog")
        assert one.target == one.prompt == "dog"
        one.prompt = "cat"
        assert one.target == "cat"
        for args, options in ((("dog",), {"prompt": "cat"}), ((), {"target": "dog", "prompt": "cat"})):
            with pytest.raises(TypeError, match="target|prompt"):
                cls(clip, *args, **options)
        with pytest.raises(TypeError, match="missing .* 'target'"):
            cls(clip)


@pytest.mark.parametrize("count", [0, -2])
def test_there_is_at_least_one_cutout(clip, count):
    with pytest.raises(ValueError, match=f"at least 1 .* got {count}"):
        CLIPGuidance(clip, "dog", cutouts=count)


BAD_ARGUMENTS = [
    ({"scale": float("nan")}, "scale must be finite, got nan"),
    ({"scale": float("inf")}, "scale must be finite, got inf"),
    ({"mode": "dps"}, "mode must be one of x0, exact, noisy, blend, or a method such as .*, got 'dps'"),
    ({"start": -0.1}, "0 <= start < stop <= 1, got start=-0.1, stop=1.0"),
    ({"stop": 1.5}, "got start=0.0, stop=1.5"),
    ({"start": 0.5, "stop": 0.5}, "got start=0.5, stop=0.5"),
    ({"every": 0}, "every must be a whole number of steps, at least 1, got 0"),
    ({"every": 1.5}, "every must be a whole number"),
    ({"space": "pixel"}, "space must be one of image, latent, got 'pixel'"),
    ({"data_variance": 0.0}, "data_variance must be positive and finite, got 0.0"),
    ({"data_variance": float("inf")}, "data_variance must be positive and finite"),
]


@pytest.mark.parametrize(("options", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(clip, options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(lambda x: x, **options)
    with pytest.raises(ValueError, match=message):
        CLIPGuidance(clip, "dog", **options)


def test_a_reward_is_callable():
    with pytest.raises(TypeError, match="reward must be callable, got str"):
        Guidance("a red apple")


def test_the_repr_is_one_line(clip):
    assert repr(CLIPGuidance(clip, "dog", 2.0)) == (
        "CLIPGuidance(scale=2.0, mode=None, start=None, stop=None, every=1, space='image', data_variance=None, "
        "schedule=None, cap=None, damping=None, decoding='auto')"
    )


# ---------------------------------------------------------------- documentation

OWN = {"clip", "target", "cutouts", "seed", "chunk"}
PAIR = {"scale", "mode", "start", "stop", "damping"}  # None where a CLIP is known: what suits it and the pipeline


def documented(cls):
    """From the name of each argument to its text in the docstring."""
    arguments = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0]
    entries = re.split(r"^    (?=\w+: )", arguments, flags=re.MULTILINE)[1:]
    return dict(entry.split(": ", 1) for entry in entries)


@pytest.mark.parametrize("cls", [Guidance, CLIPGuidance])
def test_every_argument_is_documented_in_full(cls):
    found = documented(cls)
    assert list(found) == list(inspect.signature(cls).parameters)
    assert not [name for name, text in found.items() if len(text) < 30 or "As in" in text]


def test_the_arguments_that_both_have_are_the_same_and_say_the_same():
    """They are written twice, so that an editor shows them for both."""
    ours, theirs = inspect.signature(CLIPGuidance).parameters, inspect.signature(Guidance).parameters
    shared = set(theirs) - {"reward"}
    assert set(ours) - shared == OWN
    for name in shared:
        assert ours[name].annotation == theirs[name].annotation, name
        if name in PAIR:
            assert ours[name].default is None, name
            continue
        assert ours[name].default == theirs[name].default, name
        assert documented(CLIPGuidance)[name] == documented(Guidance)[name], name
