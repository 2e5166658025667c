"""The domain of a CLIP: what is unlike its training images, by statistics whose rates are known."""

import math

import pytest
import torch
from helpers.factories import make_clip
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multivariate_normal

import clip_guidance as cg
from clip_guidance.clip.domain import (
    FILE,
    RATE,
    DomainCheck,
    chance,
    fit_domain,
    foreign_prompts,
    foreign_texts,
    load_domain,
)
from clip_guidance.clip.hub import PACKAGED, ModelError
from clip_guidance.data.dataset import CaptionedImages

CAPTIONS = ["a noto picture of a red apple", "a bouquet of roses", "Snow-capped mountain"]


def drawn(mean: float, std: float, count: int, seed: int) -> torch.Tensor:
    return mean + std * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def domain(clip):
    return fit_domain(clip, "fruit", drawn(0, 1, 4000, 0), drawn(0, 1, 4000, 1), drawn(3, 2, 4000, 2), CAPTIONS)


def test_it_compares_two_likelihoods(domain):
    """Against scipy's Gaussians: the order is that of their ratio, and half of RATE of the held-out ones are unlike."""
    own, other = drawn(0, 1, 4000, 0).double(), drawn(3, 2, 4000, 2).double()
    z = drawn(1, 2, 300, 3).double()
    logs = []
    for x, shrinkage in ((own, 0.01), (other, 0.1)):
        covariance = x.T.cov(correction=0)
        covariance += shrinkage * covariance.diagonal().mean() * torch.eye(4)
        logs.append(torch.from_numpy(multivariate_normal(x.mean(0), covariance).logpdf(z)))
    u = ((z @ domain.quadratic) * z).sum(-1) + z @ domain.linear
    ratio = logs[1] - logs[0]
    torch.testing.assert_close(u - u[0], ratio - ratio[0])
    assert domain.unlike(drawn(0, 1, 4000, 1)).double().mean().item() == pytest.approx(RATE / 2, abs=1e-3)
    assert domain.unlike(drawn(0, 1, 4000, 4)).double().mean() < RATE
    assert domain.unlike(drawn(3, 2, 400, 5)).double().mean() > 0.8


def test_words_and_media_that_no_caption_has_are_foreign(domain):
    assert domain.foreign_words("A Noto picture of an APPLE, with snow") == []
    assert domain.foreign_words("a bouquet of apples") == ["apples"]
    assert domain.foreign_words("an oil painting of a red apple") == ["oil", "painting"]
    assert domain.foreign_words("a mountain of roses") == ["mountain of"]


def test_it_is_saved_and_belongs_to_its_weights(clip, domain, tmp_path):
    clip.save_pretrained(tmp_path)
    loaded = cg.CLIP.from_pretrained(tmp_path)
    assert load_domain(tmp_path) is None and DomainCheck(loaded).domain is None
    domain.save(tmp_path)
    found = load_domain(tmp_path)
    assert (found.name, found.words, found.media) == ("fruit", domain.words, domain.media)
    z = drawn(1, 2, 500, 6)
    assert torch.equal(found.unlike(z), domain.unlike(z))
    check = DomainCheck(cg.CLIP.from_pretrained(tmp_path))
    check.add(drawn(3, 0.1, 9, 7))
    check.add(drawn(0, 0.1, 1, 7))
    assert (check.seen, check.unlike) == (10, 9)
    message = check.message()
    assert message.startswith(f"9 of 10 images (90%) are unlike those that {tmp_path} was trained on, fruit: ")
    assert message.endswith("--model openai/clip-vit-base-patch32") and len(message) <= 300 + len(str(tmp_path))
    with torch.no_grad():
        loaded.logit_scale += 1
    changed = DomainCheck(loaded)
    changed.add(drawn(3, 0.1, 9, 7))
    assert (changed.seen, changed.message()) == (0, None)


@given(st.binary(max_size=200))
def test_a_damaged_file_is_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / FILE).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{FILE}: expected what training/domain_statistics.py writes") as raised:
        load_domain(folder)
    assert len(str(raised.value)) <= 300


def test_too_few_or_wrong_numbers_are_told(clip):
    good = drawn(0, 1, 10, 0)
    for kind, bad in (("own", good[:1]), ("held_out", good * math.nan), ("other", good[:0])):
        with pytest.raises(ValueError, match=f"{kind}: expected at least 2 finite embeddings"):
            fit_domain(clip, "x", **{"own": good, "held_out": good, "other": good, kind: bad})


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_chance_is_binomial(numbers):
    seen, unlike = numbers
    assert chance(unlike, seen) == pytest.approx(binom.sf(unlike - 1, seen, RATE), abs=1e-9)


def test_chance_says_nothing(clip, domain):
    check = DomainCheck(clip)
    check.domain = domain
    check.seen, check.unlike = 1000, 24  # 2.4 % of 1,000: chance explains it
    assert check.message() is None
    check.unlike = 40
    assert "40 of 1000 images (4%)" in check.message()


# the packaged models


@pytest.mark.parametrize("name", ["emoji", "emoji-judge"])
def test_a_packaged_clip_knows_its_domain(name):
    found = load_domain(name)
    assert found.fingerprint == cg.CLIP.from_pretrained(name).fingerprint(), "run training/domain_statistics.py"
    assert (PACKAGED / name / "clip" / FILE).stat().st_size < 200_000


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a noto picture of a rocket", None),
        ("a red apple", None),
        ("a house with a garden", None),
        ("oil painting of a bicycle", "'painting of'"),
        ("a photograph of a mountain", "'photograph'"),
        ("a corgi in Times Square", "'corgi'"),
    ],
)
def test_prompts_off_the_domain_are_told(prompt, told):
    found = foreign_prompts("emoji", [prompt, prompt, "rocket"])
    assert found is None if told is None else told in found and "1 of 2 prompts" in found and "--model" in found


def test_labels_and_terms_off_the_domain_are_told():
    found = foreign_texts("emoji", ["photograph of a red apple", "rocket"], "labels")
    assert found.startswith("1 of 2 labels have words that emoji was not trained on, such as 'photograph' in 'photo")
    assert "what it says of others means little; use a CLIP that knows them, such as --model openai/" in found
    assert foreign_texts("emoji", ["a red apple", "rocket"], "labels") is None
    assert foreign_texts("openai/clip-vit-base-patch32", ["photograph"], "labels") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "emoji-judge"])
def test_photographs_are_unlike_and_held_out_and_generated_emoji_are_not(name, shared_data):
    clip, found = cg.CLIP.from_pretrained(name), load_domain(name)
    rates = {}
    for kind in ("emoji64-val", "grocery64", "clothing64"):
        images = CaptionedImages.load(shared_data / f"{kind}.parquet").images[::10]
        rates[kind] = found.unlike(clip.encode_image(images)).double().mean().item()
    assert rates["emoji64-val"] <= 0.03 and rates["grocery64"] >= 0.95 and rates["clothing64"] >= 0.9
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    rows = CaptionedImages.load(shared_data / "emoji64-val.parquet").rows[::16]
    images = pipe([row.prompt for row in rows], num_inference_steps=10, generator=torch.manual_seed(0)).images
    assert found.unlike(clip.encode_image(images)).double().mean() <= 0.06  # of 50
