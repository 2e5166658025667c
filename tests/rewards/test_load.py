"""``load_reward``: each kind from folders, files and a cache of the hub laid out by hand; misfits are named."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.factories import TEXTS, make_clip, make_tokenizer, save_tiny_clip
from helpers.hub_caches import COMMITS, lay_out
from helpers.open_clip import OpenCLIP, tiny_cfg
from helpers.tiny_rewards import bert_tokenizer, image_reward_weights, save_bert
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel

import clip_guidance as cg
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor
from clip_guidance.rewards import RewardError
from clip_guidance.rewards.image_reward import ImageReward
from clip_guidance.rewards.load import BERT, LAION_H14, REPOSITORIES

PROMPTS = TEXTS[:2]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


def test_pickscore_takes_the_tokenizer_of_its_authors(tokenizer_folder, tmp_path):
    folder = save_tiny_clip(tmp_path / "pickscore", seed=3)
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = cg.CLIP.from_pretrained(folder).tokenizer
    own = shutil.copytree(folder, tmp_path / "own")
    for file in list(folder.iterdir()):  # the repository has neither
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    cache = tmp_path / "cache"
    options = lay_out(cache, REPOSITORIES["pickscore"], {"main": folder})
    lay_out(cache, LAION_H14, {"main": own})
    reward = cg.load_reward("pickscore", PROMPTS, **options)
    size = model.config.vision_config.image_size
    images = torch.rand(2, 3, size, size)
    pixels = (images - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokenizer(PROMPTS, padding=True, return_tensors="pt"))
    torch.testing.assert_close(reward(images), expected.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4)
    assert reward.name == "pickscore" and not reward.training


@pytest.mark.parametrize("described", [True, False])
def test_hps_pads_and_takes_the_raw_cosine(tokenizer_folder, tmp_path, described):
    cfg = tiny_cfg(width=64, head_width=64, text_width=64, heads=1, vocab_size=len(make_tokenizer()), context_length=16)
    torch.manual_seed(0)
    peer = OpenCLIP(cfg).eval()
    folder = tmp_path / "hps"
    shutil.copytree(tokenizer_folder, folder)
    save_file({f"model.{k}": v.contiguous() for k, v in peer.state_dict().items()}, folder / "model.safetensors")
    if described:
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    reward = cg.load_reward(folder, PROMPTS)
    tokens = make_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    ids = tokens.input_ids * tokens.attention_mask  # open_clip pads with 0 and pools at the largest id
    images = torch.rand(2, 3, 16, 8)  # half as wide as high: four black columns on either side
    padded = F.pad(images, (4, 4))
    pixels = (padded - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    with torch.no_grad():
        expected = (peer.encode_image(pixels) * peer.encode_text(ids)).sum(-1)
    torch.testing.assert_close(reward(images), expected, rtol=1e-4, atol=1e-5)
    assert reward.name == "hpsv2.1" and expected.abs().max() <= 1


def test_aesthetic_from_a_file_and_from_a_port_with_its_clip_beside(tmp_path):
    clip, images = make_clip(), torch.rand(3, 3, 32, 32)
    weight, bias = torch.randn(1, 24), torch.randn(1)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    port = tmp_path / "port"
    port.mkdir()
    beside = {"clip.visual_projection.weight": torch.zeros(2, 2)}
    save_file({"mlp.layers.0.weight": weight, "mlp.layers.0.bias": bias, **beside}, port / "model.safetensors")
    expected = clip.image_embeds(clip.image_processor.differentiable(images)) @ weight[0] + bias
    for source in (tmp_path / "head.safetensors", port):
        reward = cg.load_reward(source, clip=clip)
        torch.testing.assert_close(reward(images), expected)
    assert cg.load_reward(port, clip=clip, dtype="bfloat16").weight.dtype == torch.float32


@pytest.mark.parametrize("config", [None, "{}"])
def test_imagereward_takes_the_tokenizer_of_bert(tmp_path, config):
    """A port to safetensors has weights, and at most a config that says nothing."""
    port = tmp_path / "port"
    port.mkdir()
    save_file(image_reward_weights(), port / "model.safetensors")
    if config is not None:
        (port / "config.json").write_text(config)
    options = lay_out(tmp_path / "hub", REPOSITORIES["imagereward"], {"main": port})
    lay_out(tmp_path / "hub", BERT, {"main": save_bert(tmp_path / "bert")})
    reward = cg.load_reward("imagereward", "a red apple", **options)
    images = torch.rand(2, 3, 32, 32)
    same = ImageReward.from_weights(image_reward_weights(), bert_tokenizer(tmp_path), "a red apple")
    assert reward(images).equal(same(images)) and reward.fingerprint() == same.fingerprint()
    assert (reward.name_or_path, reward.revision) == (REPOSITORIES["imagereward"], COMMITS["main"])


def test_the_precision_is_of_the_towers(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    reward = cg.load_reward(folder, "a red apple", dtype="bfloat16")
    size = reward.clip.image_processor.image_size
    images = torch.rand(1, 3, size, size, requires_grad=True)
    found = reward(images)
    found.sum().backward()
    assert reward.clip.dtype == torch.bfloat16 and found.dtype == torch.float32 and images.grad.abs().max() > 0


def test_what_cannot_be_loaded_is_named(tmp_path):
    def check(message, *args, error=RewardError, **options):
        with pytest.raises(error, match=message) as caught:
            cg.load_reward(*args, **options)
        assert len(str(caught.value)) <= 300

    check("xswu/HPSv2: its weights are pickled; load_reward.'hpsv2.1'. loads RE-N-Y/hpsv21", "xswu/HPSv2")
    (tmp_path / "HPS_v2.1.pt").write_bytes(b"")
    check("a .pt file is a pickle, which can run code; by name there are 'pickscore'", tmp_path / "HPS_v2.1.pt")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    check("model.safetensors cannot be read as safetensors", tmp_path)
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    check("expected the weights of a CLIP of transformers or open_clip, BLIP .*, got conv.weight", tmp_path)
    check("expected the name of a reward, a folder or a hub id, got 7", 7, error=TypeError)
    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    check("the head reads embeddings of width 7", tmp_path / "head.safetensors", clip=make_clip())
    check("image_processor: only pickscore and hpsv2.1 take one", tmp_path / "head.safetensors",
          image_processor=ImageProcessor(32), error=TypeError)  # fmt: skip
    check("neither a folder", "pikscore", error=cg.ModelError)


@pytest.mark.parametrize("sides", [(40, 20), (20, 40), (33, 32), (7, 64), (64, 64)])
def test_padding_is_that_of_open_clip(sides):
    """Its ResizeKeepRatio(longest=1) and CenterCropOrPad, on PIL images and on tensors."""
    torch.manual_seed(0)
    drawn = Image.fromarray(torch.randint(40, 216, (3, 3, 3), dtype=torch.uint8).numpy())
    image = drawn.resize(sides[::-1], Image.Resampling.BILINEAR)  # smooth, since PIL rounds to 8 bits on the way
    ratio = max(sides) / 32
    height, width = (max(1, round(side / ratio)) for side in sides)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = Image.new("RGB", (32, 32))
    expected.paste(resized, ((32 - width) // 2, (32 - height) // 2))
    processor = ImageProcessor(32, pad=True)
    found = ((processor(image) * 0.5 + 0.5) * 255).round().to(torch.uint8)
    assert found.permute(1, 2, 0).equal(torch.from_numpy(np.array(expected)))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    soft = processor.differentiable(tensor)[0] * 0.5 + 0.5
    assert (soft * 255 - found.float()).abs().max() <= 1.1
    with pytest.raises(ValueError, match="preprocessing with pad=True cannot be saved"):
        processor.save_pretrained("nowhere")
