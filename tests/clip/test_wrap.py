"""``CLIP.wrap``: models of other libraries in memory, their tokenizers and their preprocessing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.factories import TEXTS, make_tokenizer
from helpers.factories.families import FAMILIES
from helpers.family_checks import photo
from helpers.open_clip import OpenCLIP, tiny_cfg
from PIL import Image
from torch import nn

import clip_guidance as cg
from clip_guidance.clip import PromptTruncatedWarning
from clip_guidance.clip.function_parts import FunctionProcessor
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.metrics.job.texts import TextEncoder

CONTEXT = 9
SIDES = [(16, 16), (56, 40), (19, 16), (16, 23), (61, 17)]


class Tokenizer:
    """As open_clip's SimpleTokenizer: a function to padded and cut ids, which also tells the whole ids of a text."""

    sot_token_id, eot_token_id = 18, 19

    def encode(self, text: str) -> list[int]:
        return [1 + sum(map(ord, word)) % 17 for word in text.lower().split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text), self.eot_token_id][:CONTEXT]
            ids[-1] = self.eot_token_id
            row[: len(ids)] = torch.tensor(ids)
        return rows


class Compose:
    """As torchvision's."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for part in self.transforms:
            image = part(image)
        return image


class Resize:
    """As torchvision's, on PIL images."""

    max_size = None

    def __init__(self, size, interpolation="bicubic"):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        width, height = image.size
        if isinstance(self.size, int):
            short, long = self.size, int(self.size * max(image.size) / min(image.size))
            height, width = (short, long) if height <= width else (long, short)
        else:
            height, width = self.size
        return image.resize((width, height), {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[self.interpolation])


class CenterCrop:
    """As torchvision's, which rounds the corner of the crop."""

    def __init__(self, size):
        self.size = (size, size)

    def __call__(self, image):
        left, top = (round((side - self.size[0]) / 2) for side in image.size)
        return image.crop((left, top, left + self.size[1], top + self.size[0]))


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, image):
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


def _convert_to_rgb(image):
    return image.convert("RGB")


NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
COMPOSED = [
    Compose(Resize(16), CenterCrop(16), _convert_to_rgb, ToTensor(), NORMALIZE),
    Compose(Resize(21, "bilinear"), CenterCrop(16), _convert_to_rgb, ToTensor(), NORMALIZE),
    Compose(Resize((16, 16)), _convert_to_rgb, ToTensor()),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OpenCLIP(tiny_cfg(context_length=CONTEXT)).eval()


@pytest.fixture
def clip(model):
    return cg.CLIP.wrap(model, Tokenizer(), COMPOSED[0], "tiny")


@torch.no_grad()
def test_a_model_of_open_clip_is_what_it_was(model, clip):
    texts = F.normalize(model.encode_text(Tokenizer()(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_text(TEXTS), texts, rtol=0, atol=1e-6)
    images = [photo(), photo((40, 56))]
    pixels = torch.stack([COMPOSED[0](image) for image in images])
    torch.testing.assert_close(clip.encode_image(images), F.normalize(model.encode_image(pixels), dim=-1))
    assert (clip.projection_dim, clip.name_or_path, clip.logit_bias) == (texts.shape[1], "tiny", None)
    assert cg.clip_score(clip, images, TEXTS[:2]).isfinite().all()


def test_a_model_with_a_bias_gives_the_probability_of_each_pair(model, monkeypatch):
    monkeypatch.setattr(model, "logit_bias", torch.tensor([-2.0]), raising=False)
    clip, images = cg.CLIP.wrap(model, Tokenizer(), COMPOSED[0]), [photo()]
    cosines = clip.encode_image(images) @ clip.encode_text(TEXTS).T
    expected = (model.logit_scale.exp() * cosines - 2).sigmoid().detach()
    classifier = cg.ZeroShotClassifier(clip, TEXTS, templates="{}")
    torch.testing.assert_close(classifier(images).probs, expected)
    assert torch.equal(
        cg.ZeroShotClassifier(clip, TEXTS, "{}", multi_label=True)(images).probs, classifier(images).probs
    )
    for text, probability in zip(TEXTS, expected[0], strict=True):
        torch.testing.assert_close(cg.score_images(clip, images, "sigmoid", text)[0], probability)
    with pytest.raises(ValueError, match="a probability of its own: nothing to calibrate"):
        classifier.calibrate(images, TEXTS[:1])
    reward = cg.CLIPGuidance(clip, {TEXTS[0]: 2.0, TEXTS[1]: -0.5}).reward
    seen = clip.image_embeds(clip.image_processor.differentiable(torch.full((1, 3, 16, 16), 0.3)))
    logits = model.logit_scale.exp() * (seen @ clip.encode_text(TEXTS[:2]).T)[0]  # the bias has no gradient
    torch.testing.assert_close(reward(torch.full((1, 3, 16, 16), 0.3))[0], 2 * logits[0] - 0.5 * logits[1])


def test_a_clip_without_a_bias_says_nothing_of_one_text_alone(clip):
    with pytest.raises(ValueError, match="sigmoid: tiny has no logit_bias, .* expected a SigLIP"):
        cg.score_images(clip, [photo()], "sigmoid", "a cat")


def test_texts_that_are_cut_are_told_of(clip):
    with pytest.warns(PromptTruncatedWarning, match=f"prompt of 14 tokens cut to the context of {CONTEXT}"):
        found = clip.encode_text(["one two three four " * 3])
    with pytest.warns(PromptTruncatedWarning):
        judged = TextEncoder(clip)(["one two three four " * 3])
    (encoded,) = judged.values()
    assert encoded.truncated and encoded.tokens == 14
    torch.testing.assert_close(encoded.embed, found[0])
    with pytest.raises(ValueError, match="chunk-average: this CLIP's tokenizer is a function"):
        TextEncoder(cg.CLIP.wrap(clip.model, lambda texts: Tokenizer()(texts), COMPOSED[0]), "chunk-average")


@pytest.mark.parametrize("compose", COMPOSED)
def test_a_compose_is_read_and_both_forms_equal_it(model, compose):
    processor = cg.CLIP.wrap(model, Tokenizer(), compose).image_processor
    assert isinstance(processor, ImageProcessor)
    for size in SIDES:
        image = photo(size)
        expected = compose(image)
        torch.testing.assert_close(processor(image), expected, rtol=0, atol=1e-6)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        grey = (processor.differentiable(tensor)[0] - expected).abs().max() * min(processor.image_std) * 255
        assert grey <= 1.01


def test_longest_side_and_pad_is_read():
    class ResizeKeepRatio(Resize):
        longest = 1

    class CenterCropOrPad(CenterCrop):
        fill = 0

    compose = Compose(ResizeKeepRatio(16), CenterCropOrPad(16), _convert_to_rgb, ToTensor(), NORMALIZE)
    found = cg.CLIP.wrap(OpenCLIP(tiny_cfg()), Tokenizer(), compose).image_processor
    assert found == ImageProcessor(16, NORMALIZE.mean, NORMALIZE.std, pad=True)


def test_a_function_judges_and_says_why_it_cannot_steer(model):
    class Blur(nn.Module):
        def forward(self, image):
            return image

    for preprocess in (lambda image: COMPOSED[0](image), Compose(Blur(), *COMPOSED[0].transforms)):
        clip = cg.CLIP.wrap(model, Tokenizer(), preprocess)
        assert isinstance(clip.image_processor, FunctionProcessor)
        expected = cg.CLIP.wrap(model, Tokenizer(), COMPOSED[0]).encode_image([photo()])
        torch.testing.assert_close(clip.encode_image([photo()]), expected)
        with pytest.raises(TypeError, match="it judges and cannot steer: give CLIP.wrap an ImageProcessor"):
            cg.CLIPGuidance(clip, "a cat")


def test_what_is_no_model_tokenizer_or_preprocessing_is_refused(model):
    with pytest.raises(TypeError, match="expected a model with encode_text, encode_image, logit_scale, got Linear"):
        cg.CLIP.wrap(nn.Linear(1, 1), Tokenizer(), COMPOSED[0])
    with pytest.raises(TypeError, match="tokenizer: expected a tokenizer or a function of texts, got int"):
        cg.CLIP.wrap(model, 3, COMPOSED[0])
    with pytest.raises(TypeError, match=r"from a list of texts to token ids \(n, L\), got list"):
        cg.CLIP.wrap(model, lambda texts: [1], COMPOSED[0])
    with pytest.raises(TypeError, match="preprocess: expected an ImageProcessor or a function, got str"):
        cg.CLIP.wrap(model, Tokenizer(), "x")
    with pytest.raises(TypeError, match=r"from a PIL image to a tensor \(3, S, S\), got shape \(1, 3, 16, 16\)"):
        cg.CLIP.wrap(model, Tokenizer(), lambda image: torch.zeros(1, 3, 16, 16))


def test_a_model_of_transformers_is_wrapped_with_parts_of_its_own(tmp_path):
    model, tokenizer, processor = FAMILIES["siglip"].build()
    clip = cg.CLIP.wrap(model, tokenizer, processor)
    assert clip.image_processor == ImageProcessor(32, resize_to=(32, 32))
    assert clip.fingerprint() == cg.CLIP.from_pretrained(FAMILIES["siglip"].save(tmp_path)).fingerprint()
    with pytest.raises(cg.ModelError, match="reads images of 32 pixels, its preprocessing makes 64"):
        cg.CLIP.wrap(model, tokenizer, ImageProcessor(64))
    with pytest.raises(ValueError, match="and the text tower embeds"):
        cg.CLIP.wrap(model, make_tokenizer(), processor).encode_text("a butterfly")
