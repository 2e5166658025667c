"""Images and prompts that the packaged models do not know are told once per run, with the cure."""

import pytest
from PIL import Image

from clip_guidance.data.dataset import CaptionedImages


@pytest.fixture
def photographs(shared_data, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(CaptionedImages.load(shared_data / "grocery64.parquet").images[::300]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["score", "--prompt", "an apple"],
        *(pytest.param(w, marks=pytest.mark.slow) for w in (["classify", "--labels", "apple,pear"], ["similar"])),
        pytest.param(["index"], marks=pytest.mark.slow),
    ],
)
def test_photographs_are_told_once_per_run(cli, photographs, tmp_path, words):
    cache = tmp_path / "cache"
    for number in range(2):  # also where the cache knows the images
        place = ["--index", tmp_path / f"index{number}"] if words == ["index"] else []
        done = cli(*words, photographs, "--batch-size", 2, "--cache", cache, *place)
        assert done.code == 0 and done.err.count("are unlike those that emoji") == 1
        assert "of 10 images (" in done.err and "--model openai/clip-vit-base-patch32" in done.err


@pytest.mark.slow
def test_a_prompt_off_the_domain_is_told(cli, tmp_path):
    options = ["--steps", 1, "--output", tmp_path]
    done = cli("generate", "--prompt", "oil painting of a bicycle", "--prompt", "a red apple", *options)
    assert done.code == 0 and done.err.count("warning: ") == 1
    assert "1 of 2 prompts have words that emoji was not trained on, such as 'painting of'" in done.err


@pytest.mark.slow
def test_texts_off_the_domain_are_told(cli, tmp_path):
    """Of an image that the model knows: an emoji that it drew."""
    assert cli("generate", "--prompt", "a red apple", "--steps", 4, "--output", tmp_path / "made").code == 0
    words = "have words that emoji was not trained on, such as 'photograph' in 'photograph of a red apple'"
    for kind, command in (
        ("prompts", ["score", tmp_path / "made", "--prompt", "photograph of a red apple", "--model", "emoji"]),
        ("labels", ["classify", tmp_path / "made", "--labels", "photograph of a red apple, rocket"]),
    ):
        done = cli(*command)
        assert done.code == 0 and done.err.count(f"1 of {1 + (kind == 'labels')} {kind} {words}") == 1, done.err
    index = tmp_path / "index"
    assert "not trained on" not in cli("index", tmp_path / "made", "--index", index).err
    done = cli("search", "photograph of a red apple - rocket", "--index", index)
    assert done.code == 0 and f"1 of 2 terms {words}" in done.err
    assert "not trained on" not in cli("search", "red apple", "--index", index).err
