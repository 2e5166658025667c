"""What suits a pipeline and a CLIP: the packaged pair is known, all others get a calibrated strength."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.factories import TinyCLIP, generate, make_clip
from helpers.minimal_pipeline import loop, minimal_pipeline

import clip_guidance as cg
from clip_guidance._tuned import GuidanceDefaults, KnownModel, TunedPair, packaged_pairs
from clip_guidance.guidance import CLIPGuidance, Guidance, pairs
from clip_guidance.guidance.engine.attachment import Attachment
from clip_guidance.guidance.engine.calibration import Calibration
from clip_guidance.guidance.methods import MPGD
from clip_guidance.guidance.per_sample import rms

FOUND = GuidanceDefaults(scale=7.0, mode="exact", damping=0.25, start=0.25, stop=0.75)


@pytest.fixture
def tuned(monkeypatch, tiny_pipeline, clip):
    """A table that has the tiny pipeline and the tiny CLIP."""
    monkeypatch.setattr(TinyCLIP, "fingerprint", lambda self: "tiny")
    monkeypatch.setattr(TinyCLIP, "name_or_path", "tiny", raising=False)
    table = [TunedPair(*pairs.known_models(tiny_pipeline(), clip), FOUND)]
    monkeypatch.setattr(pairs, "packaged_pairs", lambda: table)
    return FOUND


def tiny_clip(seed, logit_scale):
    torch.manual_seed(seed)
    clip = TinyCLIP()
    clip.logit_scale.data.fill_(logit_scale)
    return clip


def drawn(pipe, guidance, **how):
    with guidance.attach(pipe):
        return generate(pipe, **how)


@pytest.mark.slow
def test_the_packaged_pair_is_known_by_its_weights():
    packaged = packaged_pairs()[0]
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    for pair in packaged_pairs():
        pairs.check_pair(pair, pipe, clip)
        assert CLIPGuidance(clip, "a cat", mode=pair.defaults.mode).defaults_for(pipe) == pair.defaults
    assert CLIPGuidance(clip, "a cat").defaults_for(pipe) == packaged.defaults
    assert (packaged.defaults.scale, packaged.defaults.mode) == (10.0, "blend")
    with pytest.raises(ValueError, match="tuned for the CLIP 'emoji' .*, got 'emoji-judge' .*: tune this pair"):
        pairs.check_pair(packaged, pipe, cg.CLIP.from_pretrained("emoji-judge"))


@pytest.mark.slow
def test_where_the_tower_cannot_say_anything_the_packaged_default_does_without():
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    (without,) = (pair.defaults for pair in packaged_pairs() if pair.defaults.mode == "x0")
    region = cg.Region("a dog", (0.0, 0.0, 0.5, 1.0))
    assert CLIPGuidance(clip, region).defaults_for(pipe) == without
    for weight in pipe.vae.encoder.parameters():  # of the same shapes, so that the table knows the pipeline
        weight.data.zero_()
    assert CLIPGuidance(clip, "a cat").defaults_for(pipe) == without
    with pytest.raises(ValueError, match="the tower was trained on the latents of another autoencoder"):
        CLIPGuidance(clip, "a cat", mode="blend").attach(pipe)


def test_a_pipeline_is_known_whatever_its_weights_and_its_scheduler(tiny_pipeline):
    known = pairs.pipeline_fingerprint(tiny_pipeline())
    assert pairs.pipeline_fingerprint(tiny_pipeline("euler")) == known
    assert pairs.pipeline_fingerprint(tiny_pipeline(dtype=torch.float64)) == known
    assert pairs.pipeline_fingerprint(minimal_pipeline()) != known


@pytest.mark.slow
def test_what_is_left_out_comes_from_the_table(tiny_pipeline, clip, tuned):
    pipe = tiny_pipeline()
    left_out = drawn(pipe, CLIPGuidance(clip, "dog"))
    assert left_out.equal(drawn(pipe, CLIPGuidance(clip, "dog", **dataclasses.asdict(tuned))))
    for other in ({"scale": 3.0}, {"mode": "x0"}, {"damping": 0.0}, {"stop": 0.5}):
        given = {**dataclasses.asdict(tuned), **({"start": None} if "stop" in other else {}), **other}
        expected = drawn(pipe, CLIPGuidance(clip, "dog", **given))
        assert drawn(pipe, CLIPGuidance(clip, "dog", **other)).equal(expected) and not expected.equal(left_out)


@pytest.mark.slow
def test_a_published_method_keeps_its_own_strength(tiny_pipeline, clip, tuned):
    pipe, method = tiny_pipeline(), MPGD(0.1)
    expected = drawn(pipe, CLIPGuidance(clip, "dog", 1.0, mode=method, damping=0.0, start=0.0))
    assert drawn(pipe, CLIPGuidance(clip, "dog", mode=method)).equal(expected)


@pytest.mark.slow
def test_what_is_left_out_stays_open_in_a_config(tmp_path, clip):
    folder = make_clip().save_pretrained(tmp_path / "clip") or tmp_path / "clip"
    CLIPGuidance(folder, "dog").save_pretrained(tmp_path / "guider")
    found = CLIPGuidance.from_pretrained(tmp_path / "guider")
    assert [getattr(found, name) for name in ("scale", "mode", "damping", "start", "stop")] == [None] * 5


# ---------------------------------------------------------------- the calibrated strength

BAND = 0.1
CLIPS = {"OpenAI's temperature": (1, math.log(100)), "a soft one": (2, 1.0), "a hard one": (3, 8.0)}


SLOW = {name: [pytest.mark.slow] * (name != "a soft one") for name in CLIPS}


@pytest.mark.parametrize("clip", [pytest.param(each, id=name, marks=SLOW[name]) for name, each in CLIPS.items()])
@pytest.mark.parametrize("mode", [None, pytest.param("exact", marks=pytest.mark.slow)])
def test_no_shift_is_longer_than_the_classifier_free_correction(tiny_pipeline, clip, mode, monkeypatch):
    """The stated band: the first shift is as long as the correction, none is longer, and all together half as long."""
    ratios, shift = [], Attachment.shift

    def measured(self, step):
        outputs = step.corrections.outputs[-1].chunk(2)  # without and with the prompt, as the pipeline batches them
        weight = abs(step.prediction.kind.output_weight(step.prediction.level))
        correction = weight * 7.5 * rms(outputs[1] - outputs[0])
        found = shift(self, step)
        ratios.append(rms(found) / correction)
        return found

    monkeypatch.setattr(Attachment, "shift", measured)
    guidance = CLIPGuidance(tiny_clip(*clip), ["dog", "owl"], mode=mode, data_variance=1.0)
    drawn(tiny_pipeline(), guidance, prompt=["cat", "sun"], seeds=(0, 1), guidance_scale=7.5)
    ratios = torch.stack(ratios)
    print(ratios)
    torch.testing.assert_close(ratios[0], torch.ones(2), rtol=1e-4, atol=0)
    assert ratios.max() <= 1 + 1e-4
    assert ratios.mean(0).min() >= BAND
    assert guidance.report.calibrated.shape == (2,)


def test_the_calibrated_strength_never_grows_and_is_each_images_own():
    calibration, one = Calibration(), torch.ones(2, 4)
    first = calibration.update(one * torch.tensor([[0.5], [0.0]]), torch.tensor([1.0, 3.0]), 0.25)
    assert first.tolist() == [2.0, 0.0]  # nothing is known of the second image yet
    assert calibration.update(one, torch.tensor([4.0, 3.0]), 0.25).tolist() == [2.0, 3.0]
    assert calibration.update(one, torch.tensor([1.0, math.nan]), 0.25).tolist() == [1.0, 0.5]
    assert calibration.update(one, None, 0.04).tolist() == pytest.approx([0.2, 0.2])
    calibration.take_rows(torch.tensor([1, 1]))
    assert calibration.update(0.1 * one, None, 0.04).tolist() == pytest.approx([0.2, 0.2])


def test_any_reward_can_be_calibrated(clip):
    """Without classifier-free guidance the posterior's standard deviation takes the place of its correction."""
    pipe, rewards = minimal_pipeline(), []
    for factor in (1.0, 1000.0):
        with Guidance(lambda x, k=factor: -k * x.square().flatten(1).sum(1), None, space="latent").attach(pipe) as one:
            rewards.append(loop(pipe))
        assert one.report.calibrated.shape == (2,)
    torch.testing.assert_close(*rewards)


def test_a_reward_without_a_gradient_is_told(clip):
    pipe = minimal_pipeline()
    guidance = Guidance(lambda x: 0 * x.flatten(1).sum(1), None, space="latent")
    with pytest.warns(UserWarning, match="guidance changed nothing in a run"), guidance.attach(pipe):
        loop(pipe)


# ---------------------------------------------------------------- files of what was measured


def test_a_file_is_read_as_it_was_written(tmp_path):
    pair = TunedPair(KnownModel("a", "1"), KnownModel("b", "2"), FOUND, {"prompts": 3})
    pair.save(tmp_path / "tuned.json")
    assert cg.load_tuned(tmp_path / "tuned.json") == pair
    assert pair.options == dataclasses.asdict(FOUND)


GOOD = TunedPair(KnownModel("a", "1"), KnownModel("b", "2"), FOUND).record()
BAD = [
    ({"clip": None}, "clip must be a JSON object, got None"),
    ({"clip": {"name": "a"}}, "clip has no 'fingerprint'"),
    ({"clip": {"name": "a", "fingerprint": 3}}, "fingerprint must be a text, got 3"),
    ({"options": {"mode": "x0"}}, "options has no 'scale'"),
    ({"options": {"scale": "much"}}, "scale must be a finite number, got 'much'"),
    ({"options": {"scale": 1.0, "mode": "dps"}}, "mode must be one of x0, exact, noisy, blend, got 'dps'"),
    ({"options": {"scale": 1.0, "damping": -1}}, "damping must be at least 0, got -1"),
    ({"options": {"scale": 1.0, "start": 0.5, "stop": 0.5}}, "expected 0 <= start < stop <= 1, got start=0.5"),
    ({"options": {"scale": 1.0, "every": 2}}, "options has 'every', which is unknown to this version"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_in_a_file_is_named(tmp_path, change, message):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message) as error:
        cg.load_tuned(file)
    assert str(error.value).startswith(f"{file}: ") and len(str(error.value)) < 300 + len(str(file))
