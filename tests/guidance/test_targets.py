"""What steers is what was said: scales and targets of the right type, and attributes that act or cannot be set."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.factories import TinyCLIP, generate
from helpers.minimal_pipeline import brightness, loop, minimal_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_guidance.guidance import CLIPGuidance, CLIPReward, Cutouts, Decoding, Guidance, WeightedRewards
from clip_guidance.guidance.methods import DPS

# ---------------------------------------------------------------- types


@pytest.mark.parametrize("scale", ["10", b"10", {1.0: 2.0}, {1.0}, True, [True], ["1"], [[1.0]], iter([1.0]), 1j])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(TypeError, match="scale( 0)? must be a number") as caught:
        Guidance(brightness, scale)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("one", [2, 2.0, np.float32(2), np.array(2.0), torch.tensor(2.0), Fraction(2)])
def test_any_real_number_is_a_scale(one):
    assert Guidance(brightness, one).strength(0.0, 2).tolist() == [2.0, 2.0]
    assert Guidance(brightness, [one, 3]).strength(0.0, 4).tolist() == [2.0, 2.0, 3.0, 3.0]


def test_a_tensor_of_scales_steers_each_image():
    assert Guidance(brightness, torch.tensor([1.0, 2.0])).strength(0.0, 2).tolist() == [1.0, 2.0]


BAD_TARGETS = [
    (3, r"the target must be a text, an image .*, a Region, or a list of these; got int 3"),
    (None, "got NoneType None"),
    (b"dog", "got bytes b'dog'"),
    ({"dog", "cat"}, "got set"),
    (["dog", 3], r"target 1 must be a text, an image \(PIL, tensor \(3, H, W\) or pathlib.Path\) or .*; got int 3"),
    ([["dog", "cat"]], "target 0 must be .*; got list"),
    ([("dog", "1.0")], "target 0 must be .*; got list"),
    ({"dog": 1.0, ("cat", "fish"): 1.0}, "entry 1 of the target must be .*; got tuple"),
]


@pytest.mark.parametrize(("target", "message"), BAD_TARGETS)
def test_a_target_of_another_type_is_refused(clip, target, message):
    with pytest.raises(TypeError, match=message) as caught:
        CLIPGuidance(clip, target)
    assert len(str(caught.value)) <= 300 and not clip.encoded_texts


@pytest.mark.parametrize("text", ["./fish.png", "fish.JPG", "file without a suffix"])
def test_a_text_that_looks_like_an_image_is_warned_of_and_stays_a_text(clip, tmp_path, text):
    if "file" in text:
        (tmp_path / "fish").touch()
        text = str(tmp_path / "fish")
    with pytest.warns(UserWarning, match="is read as a text. To steer towards the image, pass a pathlib.Path"):
        CLIPGuidance(clip, text)
    assert clip.encoded_texts == [text]


@pytest.mark.parametrize("text", ["a photo of St. Paul", "version 2.0", "pyproject.toml", "tests", "and/or"])
def test_other_texts_are_not_warned_of(clip, text):
    CLIPGuidance(clip, text)


@pytest.mark.parametrize("factor", [math.nan, math.inf, "1"])
def test_a_schedule_returns_finite_numbers(factor):
    guidance = Guidance(brightness, space="latent", schedule=lambda fraction: factor)
    with pytest.raises((ValueError, TypeError), match="the schedule must"), guidance.attach(pipe := minimal_pipeline()):
        loop(pipe)


# ---------------------------------------------------------------- attributes


@pytest.mark.slow
def test_a_target_that_is_set_steers_and_is_saved(tiny_pipeline, clip):
    pipe, guidance = tiny_pipeline(), CLIPGuidance(clip, "dog", 20.0)
    with CLIPGuidance(clip, ["rocket"], 20.0).attach(pipe):
        expected = generate(pipe)
    with guidance.attach(pipe):
        assert not generate(pipe).equal(expected)
        guidance.target = ["rocket"]
        assert generate(pipe).equal(expected)
    clip.name_or_path = "tiny"
    assert guidance.config["target"] == guidance.target == guidance.reward.target == ["rocket"]
    guidance.target.append("changes a copy")
    with pytest.raises(ValueError, match="the target is empty"):
        guidance.target = ""
    assert guidance.target == ["rocket"]
    with guidance.attach(pipe):
        assert generate(pipe).equal(expected)


CHANGES = {
    "scale": (30.0, "10"),
    "start": (0.5, 1.0),
    "stop": (0.5, 0.0),
    "every": (3, 1.5),
    "schedule": (lambda fraction: 1 - fraction, 0.5),
    "mode": ("exact", "dps"),
    "space": ("image", "pixel"),
    "data_variance": (0.5, -1),
    "cap": (0.1, 0),
    "decoding": (Decoding(resolution=0.5), "half"),
    "to_image": (lambda sample: sample[:, :3].sigmoid(), "image"),
    "cutouts": (3, 0),
    "seed": (5, "five"),
    "chunk": (1, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_set_acts_as_what_is_given_and_nonsense_changes_nothing(tiny_pipeline, clip, name):
    pipe, (value, nonsense) = tiny_pipeline(), CHANGES[name]
    options = {"scale": 20.0, "cutouts": 2, "stop": 0.9}
    guidance = CLIPGuidance(clip, "dog", **options)
    setattr(guidance, name, value)
    images = []
    for one in (guidance, CLIPGuidance(clip, "dog", **{**options, name: value})):
        with one.attach(pipe):
            images.append(generate(pipe))
    assert images[0].equal(images[1])
    before = getattr(guidance, name)
    with pytest.raises((ValueError, TypeError), match=f"{name}|times|count") as caught:
        setattr(guidance, name, nonsense)
    assert getattr(guidance, name) == before and len(str(caught.value)) <= 300


@pytest.mark.parametrize("name", ["mode", "space", "data_variance", "cap", "decoding", "to_image"])
def test_what_attach_reads_cannot_be_set_while_it_is_attached(name):
    pipe, guidance = minimal_pipeline(), Guidance(brightness, space="latent")
    before = getattr(guidance, name)
    with guidance.attach(pipe):
        with pytest.raises(AttributeError, match=f"{name} acts when the guidance is attached: set it outside"):
            setattr(guidance, name, before)
        loop(pipe)
    setattr(guidance, name, before)


def test_a_scale_of_zero_cannot_be_raised_while_nothing_is_attached():
    pipe, guidance = minimal_pipeline(), Guidance(brightness, 0.0, space="latent")
    with guidance.attach(pipe), pytest.raises(AttributeError, match="scale acts when"):
        guidance.scale = 1.0


def test_what_belongs_together_cannot_be_set_apart(clip):
    guidance, reward = CLIPGuidance(clip, "dog"), CLIPReward(clip, "dog")
    for owner, name in ((guidance, "clip"), (guidance, "report"), (reward, "clip"), (reward, "target_embeds")):
        with pytest.raises(AttributeError):
            setattr(owner, name, getattr(owner, name))
    with pytest.raises(TypeError, match="reward must be a CLIPReward, got function"):
        guidance.reward = brightness
    with pytest.raises(AttributeError):  # the methods are frozen
        DPS().zeta = 2.0


def test_weights_of_rewards_act_or_are_refused():
    reward = WeightedRewards([(1.0, brightness), (2.0, brightness)])
    images = torch.rand(2, 3, 4, 4)
    reward.weights = [3, -1.0]
    torch.testing.assert_close(reward(images), 2 * brightness(images))
    for weights, error in (([1.0], ValueError), (["1", 2.0], TypeError), ([math.nan, 1.0], ValueError)):
        with pytest.raises(error, match="weight"):
            reward.weights = weights
    assert reward.weights == [3.0, -1.0]


# ---------------------------------------------------------------- any junk

CLIP = TinyCLIP()
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.floats(), st.text(), st.none()), max_size=3),
    st.dictionaries(st.one_of(st.text(), st.integers()), st.one_of(st.floats(), st.text()), max_size=3),
    st.sampled_from([object(), SimpleNamespace(), 10**400, 1j, "x" * 5000, np.zeros((2, 0)), torch.zeros(2, 2), len]),
)


def check_numbers(name, value):
    """What each option of a number means, written down apart."""
    if name in ("start", "stop", "data_variance", "cap", "chunk") and value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not abs(value) < 1e308:
        return False
    if name in ("every", "cutouts", "chunk"):
        return value == int(value) >= 1
    if name == "seed":
        return value == int(value) and -(2**63) <= value < 2**64
    return {"start": 0 <= value < 1, "stop": 0 < value <= 1}.get(name, value > 0)


@pytest.mark.parametrize("name", ["start", "stop", "every", "data_variance", "cap", "cutouts", "seed", "chunk"])
@settings(max_examples=15)
@given(value=JUNK)
def test_an_option_of_a_number_is_right_or_refused_by_name(name, value):
    expected = check_numbers(name, value)
    try:
        guidance = CLIPGuidance(CLIP, "dog", **{name: value})
    except (ValueError, TypeError) as error:
        assert not expected and name in str(error) and len(str(error)) <= 300
    else:
        found = getattr(guidance, name)
        assert expected and (found.count if name == "cutouts" else found) == value


@given(scale=JUNK)
def test_a_scale_is_right_or_refused_by_name(scale):
    try:
        found = Guidance(brightness, scale).strength(0.0, 6)
    except (ValueError, TypeError) as error:
        assert ("scale" in str(error)) and len(str(error)) <= 300
    else:
        several = scale if isinstance(scale, list) else [1.0 if scale is None else scale]
        assert found.tolist() == [float(each) for each in several for _ in range(6 // len(several))]


@pytest.mark.parametrize("name", ["mode", "space", "schedule", "decoding", "to_image", "guider"])
@given(value=JUNK)
def test_another_option_is_kept_or_refused_by_name(name, value):
    try:
        found = getattr(Guidance(brightness, **{name: value}), name)
    except (ValueError, TypeError) as error:
        assert name in str(error) and len(str(error)) <= 300
    else:
        assert found is value and (value in (None, "x0", "exact", "image", "latent") or callable(value))


@pytest.mark.filterwarnings("ignore:.* looks like an image's path")
@given(target=JUNK)
def test_a_target_is_encoded_or_refused_by_name(target):
    try:
        reward = CLIPReward(CLIP, target)
    except (ValueError, TypeError) as error:
        assert "target" in str(error) and len(str(error)) <= 300
    else:
        texts = [target] if isinstance(target, str) else list(target)
        expected = CLIP.encode_text(texts)
        if isinstance(target, dict):
            expected = torch.tensor([list(target.values())]).to(expected) @ expected
        torch.testing.assert_close(reward.target_embeds, expected)


@pytest.mark.parametrize("name", ["reward", "clip"])
@given(value=JUNK)
def test_what_steers_is_callable_or_a_clip(name, value):
    if callable(value) or isinstance(value, str):  # a name is looked up
        return
    with pytest.raises(TypeError, match=f"{name} must be") as caught:
        Guidance(value) if name == "reward" else CLIPGuidance(value, "dog")
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("name", ["count", "seed", "smallest", "flip", "jitter", "noise"])
@given(value=JUNK)
def test_cutouts_are_right_or_refused_by_name(name, value):
    try:
        found = Cutouts(**{name: value})
    except (ValueError, TypeError) as error:
        assert name.replace("count", "cutouts") in str(error) and len(str(error)) <= 300
    else:
        assert getattr(found, name) == value
        assert len(list(Cutouts(**{**vars_of(found), "count": 2})(torch.rand(1, 3, 4, 4)))) == 2


def vars_of(cutouts):
    return {name: getattr(cutouts, name) for name in ("seed", "smallest", "flip", "jitter", "noise")}


@pytest.mark.parametrize("name", ["decoder", "resolution", "crop", "images", "dtype", "seed"])
@given(value=JUNK)
def test_a_decoding_is_right_or_refused_by_name(name, value):
    try:
        found = Decoding(**{name: value})
    except (ValueError, TypeError) as error:
        assert name in str(error) and len(str(error)) <= 300
    else:
        assert getattr(found, name) is value
