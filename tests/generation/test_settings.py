"""The settings in an image's record, which anybody may have written: right by field, or refused by field."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_guidance.generation.settings import RANGES, SCHEDULERS, GenerateSettings, read_settings, settings_from
from clip_guidance.generation.weighted_reward import WeightedReward

FIELDS = {entry.name: entry for entry in dataclasses.fields(GenerateSettings)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
WEIGHTS = st.floats(-20_000, 20_000) | st.integers(-20_000, 20_000) | st.text(max_size=2) | st.booleans()
REWARDS = st.lists(st.fixed_dictionaries({"name": st.just("pickscore") | st.just(""), "weight": WEIGHTS}), max_size=2)


def is_right(name: str, value) -> bool:
    """Whether a field may hold a value, said once more from the documented types and ranges."""
    if name == "rewards":
        return isinstance(value, list) and all(map(is_reward, value))
    kind, _, optional = FIELDS[name].type.partition(" | ")
    if value is None:
        return bool(optional)
    if kind == "str":
        text = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
        if name == "scheduler":
            return text and value in SCHEDULERS
        if name == "prompt":
            return text and value.strip() != ""
        return text and (name not in ("model", "clip", "judge") or (len(value) <= 1000 and "\0" not in value))
    if type(value) is not int and (kind == "int" or type(value) is not float):
        return False
    return RANGES[name][0] <= value <= RANGES[name][1]


def as_lists(pairs):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def is_reward(value) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "weight"}:
        return False
    name, weight = value["name"], value["weight"]
    text = isinstance(name, str) and 0 < len(name) <= 1000 and "\0" not in name and name.isprintable()
    return text and type(weight) in (int, float) and -10_000 <= weight <= 10_000


@given(st.dictionaries(st.sampled_from(list(FIELDS)), JSON | REWARDS, max_size=3), st.booleans())
def test_a_record_is_read_as_it_is_or_refused_by_field(values, with_prompt):
    values = {"prompt": "a cat", **values} if with_prompt else values
    wrong = [name for name, value in values.items() if not is_right(name, value)]
    window = not wrong and not (values.get("start") or 0) < values.get("stop", 1.0)
    if "prompt" in values and not wrong and not window:
        found = dataclasses.asdict(settings_from(values), dict_factory=as_lists)
        assert found == {**dataclasses.asdict(GenerateSettings("a cat"), dict_factory=as_lists), **values}
        return
    with pytest.raises(ValueError) as raised:
        settings_from(values)
    assert len(str(raised.value)) <= 300
    blamed = [*wrong, *(["start"] if window else []), *([] if "prompt" in values else ["prompt"])]
    assert any(name in str(raised.value) for name in blamed)


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("pickscore", "pickscore", 1.0),
        ("pickscore=2.5", "pickscore", 2.5),
        ("./a=b", "./a=b", 1.0),
        ("./a=b=-1e1", "./a=b", -10.0),
        ("owner/name=0", "owner/name", 0.0),
    ],
)
def test_a_reward_is_read_from_the_command_line(text, name, weight):
    found = WeightedReward.parse(text)
    assert (found.name, found.weight) == (name, weight)
    assert WeightedReward.from_record(dataclasses.asdict(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name must be that of a reward, a folder or a hub id, got ''"),
        ("pickscore=1e9", "weight must be a number from -10,000 to 10,000, got 1000000000.0"),
        ("pickscore=nan", "weight must be a number from -10,000 to 10,000, got nan"),
    ],
)
def test_what_is_no_reward_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        WeightedReward.parse(text)


def test_a_record_that_holds_no_rewards_is_refused_by_field():
    with pytest.raises(ValueError, match="rewards must be a list, got 'pickscore'"):
        settings_from({"prompt": "a cat", "rewards": "pickscore"})
    with pytest.raises(ValueError, match=r"rewards: expected name and weight, got \{'name': 'pickscore'\}"):
        settings_from({"prompt": "a cat", "rewards": [{"name": "pickscore"}]})
    with pytest.raises(ValueError, match="rewards must be a tuple of WeightedReward, got "):
        GenerateSettings("a cat", rewards=("pickscore",))


def test_rewards_steer_alone_where_there_is_no_clip():
    rewards = (WeightedReward("pickscore"),)
    for settings, scale in (
        (GenerateSettings("a cat", model="another", rewards=rewards), 0.0),
        (GenerateSettings("a cat", model="another", clip="another", rewards=rewards), 1.0),
        (GenerateSettings("a cat", model="another", scale=2.0, rewards=rewards), 2.0),
        (GenerateSettings("a cat", rewards=rewards), 10.0),
    ):
        assert settings.resolved().scale == scale


def test_another_versions_settings_are_named():
    with pytest.raises(ValueError, match=r"settings \['colour', 'zoom'\] are unknown to this version"):
        settings_from({"prompt": "a cat", "zoom": 1, "colour": 2})


def test_a_file_is_named_with_its_field(tmp_path):
    path, info = tmp_path / "a.png", PngInfo()
    info.add_text("clip_guidance", json.dumps({"settings": {"prompt": "a cat", "seed": "7"}}))
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    with pytest.raises(ValueError, match=r"a\.png: seed must be a whole number, got '7'"):
        read_settings(path)
