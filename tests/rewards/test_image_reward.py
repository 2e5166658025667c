"""ImageReward beside BLIP written out from its papers, on small random weights under the names of the release."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_rewards import LAYERS, PATCH, SIDE, TEXT_WIDTH, bert_tokenizer, image_reward_weights
from torch import Tensor
from transformers import BertTokenizer

from clip_guidance.clip import PromptTruncatedWarning
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD
from clip_guidance.rewards.base import RewardError
from clip_guidance.rewards.image_reward import ImageReward


@pytest.fixture
def tokenizer(tmp_path) -> BertTokenizer:
    return bert_tokenizer(tmp_path)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return image_reward_weights()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of heads of 64, softmax(QKᵀ/8)V."""
    q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / 8
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def written_out(weights: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    w = {name.removeprefix("blip."): tensor.double() for name, tensor in weights.items()}
    pixels = pixels.double()

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    patches = F.conv2d(pixels, w["visual_encoder.patch_embed.proj.weight"], w["visual_encoder.patch_embed.proj.bias"],
                       stride=PATCH).flatten(2).transpose(1, 2)  # fmt: skip
    x = torch.cat([w["visual_encoder.cls_token"].expand(len(pixels), -1, -1), patches], 1)
    x = x + w["visual_encoder.pos_embed"]
    for layer in range(LAYERS):
        block = f"visual_encoder.blocks.{layer}."
        q, k, v = linear(norm(x, f"{block}norm1", 1e-6), f"{block}attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), f"{block}attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}norm2", 1e-6), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    image = norm(x, "visual_encoder.norm", 1e-6)

    words = w["text_encoder.embeddings.word_embeddings.weight"][ids]
    words = words + w["text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(words, "text_encoder.embeddings.LayerNorm", 1e-12)
    for layer in range(LAYERS):
        block = f"text_encoder.encoder.layer.{layer}."
        for name, source, seen in (("attention", None, mask), ("crossattention", image, None)):
            of = x if source is None else source
            parts = [linear(y, f"{block}{name}.self.{part}") for y, part in ((x, "query"), (of, "key"), (of, "value"))]
            added = linear(attend(*parts, seen), f"{block}{name}.output.dense")
            x = norm(x + added, f"{block}{name}.output.LayerNorm", 1e-12)
        hidden = F.gelu(linear(x, f"{block}intermediate.dense"))
        x = norm(x + linear(hidden, f"{block}output.dense"), f"{block}output.LayerNorm", 1e-12)
    y = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        y = linear(y, f"mlp.layers.{number}")
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_equals_blip_written_out(weights, tokenizer):
    prompts = ["a red apple", "a rocket"]
    reward = ImageReward.from_weights(weights, tokenizer, prompts)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    pixels = (images - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 5, 8, 3, 0]])  # [CLS] a red apple [SEP]; [CLS] a rocket [SEP] [PAD]
    expected = written_out(weights, pixels, ids, (ids != 0).long())
    assert expected.std() > 0.05  # else anything would equal it
    torch.testing.assert_close(reward.double()(images.double()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reward.score(images.double(), prompts), expected, rtol=1e-5, atol=1e-5)
    one = reward.score(images.double(), "a rocket")
    torch.testing.assert_close(one[1], expected[1], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(one[0], expected[0], rtol=1e-2)


def test_steers_by_a_gradient(weights, tokenizer):
    reward = ImageReward.from_weights(weights, tokenizer, "a red apple").double()
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaf = images.clone().requires_grad_()
    reward(leaf).sum().backward()
    with torch.no_grad():
        difference = (reward(images + 1e-5 * direction) - reward(images - 1e-5 * direction)).sum() / 2e-5
    assert (leaf.grad * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4)


def test_long_texts_are_cut_at_35_tokens(weights, tokenizer):
    reward = ImageReward.from_weights(weights, tokenizer)
    image = torch.rand(1, 3, SIDE, SIDE)
    long, longer = "red " * 33, "red " * 33 + "rocket"
    with pytest.warns(PromptTruncatedWarning, match="of 36 tokens cut to the context of 35: 'rocket' was dropped"):
        assert reward.score(image, long).equal(reward.score(image, longer))
    assert not reward.score(image, "red " * 32).equal(reward.score(image, long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blip.visual_encoder.norm.bias": None}, "its BlipVisionModel does not fit: missing post_layernorm.bias"),
        ({"blip.visual_encoder.pos_embed": None}, "missing from its image tower: embeddings.position_embedding"),
        ({"blip.text_encoder.extra": torch.zeros(2)}, "its BlipTextModel does not fit: left over extra"),
        ({"stray.weight": torch.zeros(2)}, "weights that it does not have: stray.weight"),
        ({"mlp.layers.7.bias": None}, "expected a weight and a bias per linear layer"),
        ({"mlp.layers.0.weight": torch.zeros(24, 7)}, "layers that do not fit each other or embeddings of width 64"),
        ({"blip.text_encoder.embeddings.word_embeddings.weight": torch.zeros(9, TEXT_WIDTH)},
         "the tokenizer has 10 tokens, the model 9"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(weights, tokenizer, change, message):
    changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
    with pytest.raises(RewardError, match=message) as caught:
        ImageReward.from_weights(changed, tokenizer)
    assert len(str(caught.value)) <= 300


def test_without_a_prompt_it_only_judges(weights, tokenizer):
    reward = ImageReward.from_weights(weights, tokenizer)
    with pytest.raises(ValueError, match="imagereward was loaded without a prompt"):
        reward(torch.rand(1, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="2 prompts cannot be shared out among 3 images"):
        reward.score(torch.rand(3, 3, SIDE, SIDE), ["a", "red"])
    with pytest.raises(TypeError, match="prompt: expected a text or a list of texts, got int"):
        reward.score(torch.rand(3, 3, SIDE, SIDE), 7)
    with pytest.raises(ValueError, match=r"imagereward reads images \(B, 3, H, W\) in \[0, 1\], got \(3, 8, 8\)"):
        reward.score(torch.rand(3, 8, 8), "a")
