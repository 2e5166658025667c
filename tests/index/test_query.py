"""Queries: how they are read, and that their vector is the weighted sum."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from clip_guidance.images.load import ImageError
from clip_guidance.index.query import Term, parse_query, query_embeds


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder with images, one of them with spaces in its name, and other files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("b.png", "my photo.png", "sub/c.JPG", "plain", "sub/plain")):
        Image.new("RGB", (32, 32), (50 * number, 100, 200 - 40 * number)).save(tmp_path / name, "png")


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("red apple", [(1, "red apple")]),
        ("  red  ", [(1, "red")]),
        ("2 * red apple - ./b.png", [(2, "red apple"), (-1, Path("b.png"))]),
        ('"2 * red apple" - ./b.png', [(2, "red apple"), (-1, Path("b.png"))]),
        ('2 * "red apple" + .5*worm', [(2, "red apple"), (0.5, "worm")]),
        ('2 * "3 * red"', [(6, "red")]),
        ("- worm + apple", [(-1, "worm"), (1, "apple")]),
        ("+ worm", [(1, "worm")]),
        ("- 0.25 * worm", [(-0.25, "worm")]),
        ("black-and-white t-shirt", [(1, "black-and-white t-shirt")]),
        ("C++ -5 degrees", [(1, "C++ -5 degrees")]),
        ('"salt + pepper" + "a - b"', [(1, "salt + pepper"), (1, "a - b")]),
        ('2*"salt + pepper" - pan', [(2, "salt + pepper"), (-1, "pan")]),
        ('5" screen - 7" screen', [(1, '5" screen'), (-1, '7" screen')]),
        ("2 apples", [(1, "2 apples")]),
        ("a * b", [(1, "a * b")]),
        ("b.png", [(1, Path("b.png"))]),
        ("my photo.png + sub/c.JPG", [(1, Path("my photo.png")), (1, Path("sub/c.JPG"))]),
        ('"my photo.png"', [(1, Path("my photo.png"))]),
        ("a photo.png of mine.png", [(1, "a photo.png of mine.png")]),
        ("plain", [(1, "plain")]),  # a word, though there is a file of that name
        ("./plain", [(1, Path("plain"))]),
        ("don't", [(1, "don't")]),
    ],
)
def test_queries_are_read(query, terms):
    assert [(term.weight, term.source) for term in parse_query(query)] == terms


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "expected a text or an image at character 1: "),
        ("   ", "expected a text or an image at character 4: "),
        ("a + ", r"expected a text or an image at character 5: a \+ "),
        ("a + - b", "expected a text or an image at character 5"),
        ("-", "expected a text or an image at character 2"),
        ("a - 2 * ", "expected a text or an image after the weight at character 5"),
        ('""', "expected a text or an image after the weight at character 1"),
        ('a + "b - c', "a quote is opened and not closed at character 5"),
        ("a - gone.png", "there is no file gone.png, at character 5: a - gone.png"),
        ("./gone", "there is no file ./gone, at character 1"),
        ("./sub", "there is no file ./sub, at character 1"),
        ("a + http://host/b.png", "http://host/b.png is an address; download the image and give its path"),
    ],
)
def test_errors_say_where(query, message):
    with pytest.raises(ValueError, match=f"^query: {message}"):
        parse_query(query)


def test_the_vector_is_the_weighted_sum(clip):
    texts, images = clip.encode_text(["red apple", "worm"]), clip.encode_image(["b.png", "sub/c.JPG"])
    total = 2 * texts[0] - 0.5 * texts[1] + images[0] - images[1]
    found = query_embeds(clip, "2 * red apple - .5 * worm + b.png - ./sub/c.JPG")
    assert_close(found, total / total.norm())
    assert_close(query_embeds(clip, "red apple"), texts[0])
    for image in (Path("b.png"), Image.open("b.png"), Path("b.png").read_bytes(), Term(Path("b.png"), 3.0)):
        assert_close(query_embeds(clip, image), images[0])
    terms = [Term("red apple", 2), Term("worm", -0.5), Term(Path("b.png")), Term(Image.open("sub/c.JPG"), -1)]
    assert_close(query_embeds(clip, terms), found)
    assert_close(query_embeds(clip, Term("2 * b.png")), clip.encode_text("2 * b.png")[0])  # taken as it stands


def test_weights_are_relative(clip):
    assert_close(query_embeds(clip, "2 * apple - 4 * worm"), query_embeds(clip, ".5 * apple - worm"))


@pytest.mark.parametrize("query", ["apple - apple", "0 * apple", "2 * b.png - b.png - b.png"])
def test_terms_that_cancel_out_are_refused(clip, query):
    with pytest.raises(ValueError, match="query: its terms cancel out"):
        query_embeds(clip, query)


def test_other_queries_are_refused(clip):
    for query in ([], ["apple"]):
        with pytest.raises(ValueError, match="query: expected a text, an image, or a list of Term, got"):
            query_embeds(clip, query)
    with pytest.raises(ValueError, match="query: expected a finite weight, got inf"):
        Term("apple", float("inf"))
    with pytest.raises(ImageError, match=r"broken\.png: is empty"):
        Path("broken.png").touch()
        query_embeds(clip, "broken.png")
    assert not torch.is_grad_enabled() or not query_embeds(clip, "apple").requires_grad
