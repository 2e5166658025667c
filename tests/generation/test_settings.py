"""The settings in an image's record, which anybody may have written: right by field, or refused by field."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_guidance import ImageError
from clip_guidance.generation.settings import RANGES, SCHEDULERS, GenerateSettings, read_settings, settings_from
from clip_guidance.generation.targets import ImageFile, PlacedTarget
from clip_guidance.generation.weighted_reward import WeightedReward

EMPTY = json.loads(json.dumps(dataclasses.asdict(GenerateSettings("a cat", damping=0.0))))
FIELDS = {entry.name: entry for entry in dataclasses.fields(GenerateSettings)}
HASHED = {"hash": "0123456789abcdef" * 2}
FILES = st.sampled_from([HASHED | {"path": path} for path in ("a.png", "é", "", 5, None, "\ud800", "x" * 5000)])
BOXES = st.sampled_from([[0, 0.5, 1, 1], [0.25, 0, 0.75, 0.5], [0, 0, 2, 1], [0, 1, 1, 0], [0, 0, 1], "0,0,1,1", None])
TARGETS = st.sampled_from(["a red apple", " ", "\ud800", 7, None]) | FILES
REGIONS = st.fixed_dictionaries({"target": TARGETS, "box": BOXES}, optional={"weight": st.just(2)})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
WEIGHTS = st.floats(-20_000, 20_000) | st.integers(-20_000, 20_000) | st.text(max_size=2) | st.booleans()
REWARDS = st.lists(st.fixed_dictionaries({"name": st.just("pickscore") | st.just(""), "weight": WEIGHTS}), max_size=2)


def is_file(value) -> bool:
    return isinstance(value, dict) and value == HASHED | {"path": value.get("path")} and value["path"] in ("a.png", "é")


def is_region(value) -> bool:
    if not isinstance(value, dict) or set(value) != {"target", "box"}:
        return False
    target, box = value["target"], value["box"]
    return (is_file(target) or target == "a red apple") and box in ([0, 0.5, 1, 1], [0.25, 0, 0.75, 0.5])


def is_right(name: str, value) -> bool:
    """Whether a field may hold a value, said once more from the documented types and ranges."""
    if name == "clip_images":
        return isinstance(value, list) and all(map(is_file, value))
    if name == "regions":
        return isinstance(value, list) and all(map(is_region, value))
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


def is_reward(value) -> bool:
    if not isinstance(value, dict) or set(value) != {"name", "weight"}:
        return False
    name, weight = value["name"], value["weight"]
    text = isinstance(name, str) and 0 < len(name) <= 1000 and "\0" not in name and name.isprintable()
    return text and type(weight) in (int, float) and -10_000 <= weight <= 10_000


LISTED = st.lists(FILES | st.just({"path": "a.png", "hash": "f"}), max_size=2) | st.lists(REGIONS, max_size=2)
VALUES = JSON | LISTED | REWARDS


@given(st.dictionaries(st.sampled_from(list(FIELDS)), VALUES, max_size=3), st.booleans())
def test_a_record_is_read_as_it_is_or_refused_by_field(values, with_prompt):
    values = {"prompt": "a cat", **values} if with_prompt else values
    wrong = [name for name, value in values.items() if not is_right(name, value)]
    stop = 1.0 if values.get("stop") is None else values["stop"]
    window = not wrong and not (values.get("start") or 0) < stop
    if "prompt" in values and not wrong and not window:
        found = settings_from(values)
        assert json.loads(json.dumps(dataclasses.asdict(found))) == {**EMPTY, **values}
        assert settings_from(json.loads(json.dumps(found.record()))) == found
        return
    with pytest.raises(ValueError) as raised:
        settings_from(values)
    assert len(str(raised.value)) <= 300
    blamed = [*wrong, *(["start"] if window else []), *([] if "prompt" in values else ["prompt"])]
    assert any(name in str(raised.value) for name in blamed)


def test_a_record_tells_of_damping_and_particles_where_there_are_some():
    assert not {"damping", "particles"} & set(GenerateSettings("a cat").record())
    assert GenerateSettings("a cat", particles=2).record()["particles"] == 2
    assert GenerateSettings("a cat", damping=0.5).record()["damping"] == 0.5
    assert settings_from(GenerateSettings("a cat", damping=0.0).record()).damping == 0.0  # as those drew who had none


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


# ---------------------------------------------------------------- images and regions

SHARES = r"box must be left,top,right,bottom in \[0, 1\] with left < right and top < bottom, got "
BAD_REGIONS = [
    ("a red apple", r"expected TEXT@left,top,right,bottom, such as 'a red apple@0,0,0.5,1', got 'a red apple'"),
    ("@0,0,1,1", "expected TEXT@left,top,right,bottom"),
    ("a@0,0,1", "expected TEXT@left,top,right,bottom"),
    ("a@0,0,one,1", "expected TEXT@left,top,right,bottom"),
    (" @0,0,1,1", "target must be a text with at least one word"),
    ("a@0,0,1.5,1", SHARES),
    ("a@0.5,0,0.5,1", SHARES),
    ("a@0,0,nan,1", SHARES),
    ("file:gone.png@0,0,1,1", "gone.png: no such file"),
]


@pytest.mark.parametrize(("text", "message"), BAD_REGIONS)
def test_a_region_is_read_or_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        PlacedTarget.parse(text)
    assert len(str(caught.value)) <= 300


def test_a_region_is_a_text_or_a_file_and_its_place(tmp_path):
    assert PlacedTarget.parse("me@home@0,0,.5,1") == PlacedTarget("me@home", (0.0, 0.0, 0.5, 1.0))
    (path := tmp_path / "a@b.png").write_bytes(b"some bytes")
    region = PlacedTarget.parse(f"file:{path}@0,0,1,1")
    assert region.target == ImageFile.read(str(path)) and region.target.bytes() == b"some bytes"


def test_a_file_that_is_gone_or_changed_is_told(tmp_path):
    (path := tmp_path / "a.png").write_bytes(b"one")
    file = ImageFile.read(str(path))
    path.write_bytes(b"two")
    with pytest.raises(ImageError, match=r"a\.png: is another image than was steered to \(hash "):
        file.bytes()
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        file.bytes()
