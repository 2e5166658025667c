"""CLIPs of open_clip beside its own forward pass, written out with torch's modules, on small random weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_guidance.clip import CLIP
from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.open_clip import as_open_clip, convert_open_clip

MODEL_CFG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 3.0},
    "text_cfg": {"context_length": 9, "vocab_size": 20, "width": 24, "heads": 3, "layers": 2},
}


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int, ratio: float, act: nn.Module):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, int(width * ratio)))
        self.mlp.add_module("gelu", act)
        self.mlp.add_module("c_proj", nn.Linear(int(width * ratio), width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, ratio: float, act: nn.Module):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, ratio, act) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, cfg: dict, dim: int, act: nn.Module):
        super().__init__()
        width, patch = cfg["width"], cfg["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((cfg["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, cfg["layers"], width // cfg["head_width"], cfg["mlp_ratio"], act)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, 0] @ self.proj


class OpenCLIP(nn.Module):
    """open_clip's CLIP: its names, and its forward pass as model.py and transformer.py have it."""

    def __init__(self, cfg: dict):
        super().__init__()
        text, act = cfg["text_cfg"], QuickGELU() if cfg.get("quick_gelu") else nn.GELU()
        self.visual = Visual(cfg["vision_cfg"], cfg["embed_dim"], act)
        self.transformer = Transformer(text["width"], text["layers"], text["heads"], 4.0, act)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.randn(text["width"], cfg["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("attn_mask", torch.full([text["context_length"]] * 2, -torch.inf).triu(1))
        for parameter in self.parameters():
            if parameter.ndim:  # biases too begin at random, so that each has a place to be kept in
                nn.init.normal_(parameter, std=0.4)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, self.attn_mask[: ids.shape[1], : ids.shape[1]]))
        return F.normalize(x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection, dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(pixels), dim=-1)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def theirs(**changes: object) -> tuple[dict, OpenCLIP]:
    torch.manual_seed(0)
    cfg = {**copy.deepcopy(MODEL_CFG), **changes}
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
