"""The CLIP of open_clip, written out with torch's modules: its names and its forward pass, at any size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.factories import letter_tokenizer


def tiny_cfg(
    width: int = 32,
    head_width: int = 16,
    text_width: int = 24,
    heads: int = 3,
    vocab_size: int = 20,
    context_length: int = 9,
) -> dict:
    """Make the ``model_cfg`` of a tiny model."""
    vision = {"image_size": 16, "layers": 2, "width": width, "head_width": head_width, "patch_size": 8, "mlp_ratio": 3}
    text = {"context_length": context_length, "vocab_size": vocab_size, "width": text_width, "heads": heads}
    return {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {**text, "layers": 2}}


def eps_of(cfg: dict) -> float:
    return cfg.get("norm_kwargs", {}).get("eps", 1e-5)


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int, ratio: float, act: nn.Module, eps: float):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width, eps), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, int(width * ratio)))
        self.mlp.add_module("gelu", act)
        self.mlp.add_module("c_proj", nn.Linear(int(width * ratio), width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, ratio: float, act: nn.Module, eps: float):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, ratio, act, eps) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, cfg: dict, dim: int, act: nn.Module):
        super().__init__()
        width, patch, eps = cfg["width"], cfg["patch_size"], eps_of(cfg)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((cfg["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.transformer = Transformer(width, cfg["layers"], width // cfg["head_width"], cfg["mlp_ratio"], act, eps)
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
        ratio, eps = text.get("mlp_ratio", 4.0), eps_of(text)
        self.eos_id = text["eos_id"] if text.get("pool_type") == "eos" else None
        self.transformer = Transformer(text["width"], text["layers"], text["heads"], ratio, act, eps)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"], eps)
        self.text_projection = nn.Parameter(torch.randn(text["width"], cfg["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("attn_mask", torch.full([text["context_length"]] * 2, -torch.inf).triu(1))
        for parameter in self.parameters():
            if parameter.ndim:  # biases too begin at random, so that each has a place to be kept in
                nn.init.normal_(parameter, std=0.4)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, self.attn_mask[: ids.shape[1], : ids.shape[1]]))
        end = ids.argmax(-1) if self.eos_id is None else (ids == self.eos_id).int().argmax(-1)
        return F.normalize(x[torch.arange(len(x)), end] @ self.text_projection, dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(pixels), dim=-1)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def save_tiny_open_clip(folder: Path, weights: str = "open_clip_model.safetensors", **preprocess: object) -> OpenCLIP:
    """Writes a model of open_clip with its tokenizer, one token a letter, and returns it."""
    tokenizer = letter_tokenizer()
    cfg = tiny_cfg(vocab_size=len(tokenizer), context_length=tokenizer.model_max_length)
    torch.manual_seed(0)
    peer = OpenCLIP(cfg).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t for name, t in peer.state_dict().items() if name != "attn_mask"}, folder / weights)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    tokenizer.save_pretrained(folder)
    return peer
