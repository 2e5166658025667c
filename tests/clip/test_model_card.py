"""The card of a trained CLIP tells what the model is, and is never written over."""

import re

import pytest
from helpers.factories import PAIRS, make_clip
from huggingface_hub import ModelCard

from clip_guidance.clip.model_card import Figure, model_card, write_model_card


@pytest.mark.parametrize("pair", PAIRS)
def test_the_card_is_one_of_the_hub_and_counts_the_parameters(pair):
    clip = make_clip(*pair)
    figure = Figure(0.4567, 1234, 0.0125, "val.parquet")
    text = model_card(clip, "me/clip", settings={"steps": 7, "init": None, "data": ["a"]}, figures={"R@1": figure})
    metadata = ModelCard(text).data.to_dict()
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("clip_guidance", "zero-shot-image-classification")
    total = sum(parameter.numel() for parameter in clip.parameters())
    assert f"A CLIP of {total / 1e6:.2f} M parameters" in text and 'from_pretrained("me/clip")' in text
    assert "| R@1 | 45.7 % | 1.2 % | 1,234 of val.parquet |" in text and '"steps": 7' in text and "init" not in text
    kinds = re.findall(r"\| (?:image|text) \| `(\w+)`", text)
    assert kinds == [clip.config.vision_config.model_type, clip.config.text_config.model_type]


def test_a_card_that_people_wrote_is_kept(tmp_path):
    folder = tmp_path / "my-clip"
    folder.mkdir()
    path = write_model_card(folder, make_clip())
    assert "# my-clip\n" in path.read_text()
    path.write_text("by hand")
    assert write_model_card(folder, make_clip()) == path and path.read_text() == "by hand"


@pytest.mark.slow
def test_the_example_works_as_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = make_clip()
    clip.save_pretrained("runs/my-clip")
    path = write_model_card("runs/my-clip", clip)
    (example,) = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    expected = clip.encode_image(names["image"]) @ clip.encode_text(["a red apple"]).T
    assert capsys.readouterr().out == f"{expected}\n" and names["image"].size == (64, 64)
