"""CLIPs of open_clip beside its own forward pass, written out with torch's modules, on small random weights."""

import pytest
import torch
from helpers.open_clip import OpenCLIP, tiny_cfg

from clip_guidance.clip import CLIP
from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.open_clip import as_open_clip, convert_open_clip


def theirs(**changes: object) -> tuple[dict, OpenCLIP]:
    torch.manual_seed(0)
    cfg = {**tiny_cfg(), **changes}
    return cfg, OpenCLIP(cfg).eval()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_equals_open_clip(quick_gelu, prefix):
    cfg, peer = theirs(quick_gelu=quick_gelu)
    config, weights = convert_open_clip(cfg, {prefix + k: v for k, v in peer.state_dict().items()}, "peer")
    clip = CLIP(config).eval()
    clip.load_state_dict(weights)
    pixels = torch.randn(3, 3, 16, 16, requires_grad=True)
    ids = torch.tensor([[18, 3, 4, 19, 0, 0, 0, 0, 0], [18, 5, 6, 7, 8, 9, 10, 11, 19]])
    torch.testing.assert_close(clip.text_embeds(ids), peer.encode_text(ids), rtol=1e-5, atol=1e-6)
    ours, expected = clip.image_embeds(pixels), peer.encode_image(pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(ours)
    found, wanted = (torch.autograd.grad((e * direction).sum(), pixels)[0] for e in (ours, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert clip.logit_scale.item() == 1.5 and expected.std() > 0.1


def test_the_way_back_is_the_same_weights():
    cfg, peer = theirs()
    clip = CLIP(convert_open_clip(cfg, peer.state_dict(), "peer")[0])
    clip.load_state_dict(convert_open_clip(cfg, peer.state_dict(), "peer")[1])
    back, expected = as_open_clip(clip.state_dict()), peer.state_dict()
    del expected["attn_mask"]
    assert back.keys() == expected.keys()
    assert all(back[name].equal(tensor) for name, tensor in expected.items())


def test_a_text_tower_of_its_own_is_the_same():
    """open_clip's CustomTextCLIP holds the text tower under "text."."""
    cfg, peer = theirs()
    own = ("visual.", "logit_scale")
    custom = {k if k.startswith(own) else f"text.{k}": v for k, v in peer.state_dict().items()}
    _, weights = convert_open_clip(cfg, custom, "peer")
    expected = convert_open_clip(cfg, peer.state_dict(), "peer")[1]
    assert weights.keys() == expected.keys() and all(weights[k].equal(v) for k, v in expected.items())


@pytest.mark.parametrize(
    ("tower", "setting", "value"),
    [
        ("vision", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision", "pool_type", "avg"),
        ("vision", "ls_init_value", 1e-4),
        ("text", "hf_model_name", "xlm-roberta-base"),
        ("text", "no_causal_mask", True),
        ("text", "pool_type", "last"),
    ],
)
def test_another_architecture_is_named(tower, setting, value):
    cfg, peer = theirs()
    cfg[f"{tower}_cfg"][setting] = value
    with pytest.raises(ModelError, match=f"peer: its {tower} tower has {setting} {value!r}, which only") as caught:
        convert_open_clip(cfg, peer.state_dict(), "peer")
    assert len(str(caught.value)) <= 300


def test_a_weight_of_another_model_is_named():
    cfg, peer = theirs()
    with pytest.raises(ModelError, match="a weight that no CLIP of open_clip has: mlp.0.weight"):
        convert_open_clip(cfg, {**peer.state_dict(), "mlp.0.weight": torch.zeros(2)}, "peer")
    cfg["vision_cfg"]["image_size"] = [16, 32]
    with pytest.raises(ModelError, match=r"expected square images, got image_size \[16, 32\]"):
        convert_open_clip(cfg, peer.state_dict(), "peer")
