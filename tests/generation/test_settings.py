"""The settings in an image's record, which anybody may have written: right by field, or refused by field."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_guidance.generation.settings import RANGES, SCHEDULERS, GenerateSettings, read_settings, settings_from

FIELDS = {entry.name: entry for entry in dataclasses.fields(GenerateSettings)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def is_right(name: str, value) -> bool:
    """Whether a field may hold a value, said once more from the documented types and ranges."""
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


@given(st.dictionaries(st.sampled_from(list(FIELDS)), JSON, max_size=3), st.booleans())
def test_a_record_is_read_as_it_is_or_refused_by_field(values, with_prompt):
    values = {"prompt": "a cat", **values} if with_prompt else values
    wrong = [name for name, value in values.items() if not is_right(name, value)]
    window = not wrong and not (values.get("start") or 0) < values.get("stop", 1.0)
    if "prompt" in values and not wrong and not window:
        assert dataclasses.asdict(settings_from(values)) == {**dataclasses.asdict(GenerateSettings("a cat")), **values}
        return
    with pytest.raises(ValueError) as raised:
        settings_from(values)
    assert len(str(raised.value)) <= 300
    blamed = [*wrong, *(["start"] if window else []), *([] if "prompt" in values else ["prompt"])]
    assert any(name in str(raised.value) for name in blamed)


def test_another_versions_settings_are_named():
    with pytest.raises(ValueError, match=r"settings \['colour', 'zoom'\] are unknown to this version"):
        settings_from({"prompt": "a cat", "zoom": 1, "colour": 2})


def test_a_file_is_named_with_its_field(tmp_path):
    path, info = tmp_path / "a.png", PngInfo()
    info.add_text("clip_guidance", json.dumps({"settings": {"prompt": "a cat", "seed": "7"}}))
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    with pytest.raises(ValueError, match=r"a\.png: seed must be a whole number, got '7'"):
        read_settings(path)
