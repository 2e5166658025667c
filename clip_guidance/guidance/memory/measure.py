"""Measure the memory that the gradient of a reward takes, by running it on the meta device.

Tensors on the meta device have sizes and no data, so the code of guidance itself runs, forwards and backwards, and its
allocations are counted. Not counted are weights and the workspaces of kernels and libraries.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip_guidance.guidance.adapters.layouts import already_latents
from clip_guidance.guidance.clip_reward import CLIPReward
from clip_guidance.guidance.engine import gradient
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.weights.clone import clone


class Meter(TorchDispatchMode):
    """Count the bytes of the tensors that are made inside the ``with`` block, each storage once.

    Attributes:
        held: Bytes that are held now.
        peak: Largest number of bytes held at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; its inputs existed before, its outputs are new unless they are views."""
        self._see((args, kwargs), new=False)
        output = func(*args, **(kwargs or {}))
        self._see(output, new=True)
        return output

    def _see(self, tensors: Any, new: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                size = storage.nbytes() if new else 0
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._forget, storage._cdata, size).atexit = False
                self.held += size
                self.peak = max(self.peak, self.held)

    def _forget(self, identity: int, size: int) -> None:
        self._known.remove(identity)
        self.held -= size


@dataclass(frozen=True)
class DecoderBytes:
    """Hold the memory of a decoder, as :func:`decoder_bytes` measures it.

    Attributes:
        kept: Bytes held between forward and backward, the images included.
        peak: Largest number of bytes held at a time, without the images' gradient.
        images: The images, (B, 3, H, W) or (B, 3, F, H, W), on the meta device.
    """

    kept: int
    peak: int
    images: Tensor


def decoder_bytes(decoder: Decoder, shape: tuple[int, ...]) -> DecoderBytes:
    """Measure a decoder on the meta device, forwards and backwards, for latents of ``shape``."""
    latents = torch.empty(shape, device="meta", requires_grad=True)
    with _fused_attention(), Meter() as meter, torch.enable_grad(), decoder.for_gradients(latents.device):
        images = decoder(latents)
        kept = meter.held
        if images.requires_grad:
            gradient.vjp(images, [latents], images.new_empty(images.shape))
        # The meter counted the cotangent too, which stands for the reward's gradient.
        return DecoderBytes(kept, meter.peak - images.nbytes, images.detach())


def reward_bytes(reward: Any, images: Tensor, chunk: int | None) -> int:
    """Measure the largest number of bytes that a reward holds at a time, forwards and backwards.

    Args:
        reward: From images (B, 3, H, W) to (B,).
        images: Images on the meta device, whose own bytes are not counted.
        chunk: Views that pass through CLIP together; None for all.

    Raises:
        ValueError: The reward does not run on the meta device.
    """
    reward = clone(reward, _on_meta) if isinstance(reward, nn.Module) else reward
    for each in clip_rewards(reward):
        # Copied cutouts have a new generator, so that the random state of the original stays.
        each.cutouts, each.chunk = replace(each.cutouts), chunk
    try:
        with _fused_attention(), Meter() as meter, torch.enable_grad():
            gradient.gradient_at_images(reward, images.detach())
    except Exception as error:
        raise ValueError(
            f"the memory of a reward is found by running it on the meta device, where tensors have sizes but no data; "
            f"{type(reward).__name__} does not run there: {error}"
        ) from error
    return meter.peak


def clip_rewards(reward: Any) -> list[CLIPReward]:
    """Find the rewards among a reward's modules whose cutouts can be divided into chunks."""
    return [m for m in reward.modules() if isinstance(m, CLIPReward)] if isinstance(reward, nn.Module) else []


def decoder_on_meta(decoder: Decoder) -> Decoder:
    """Put ``decoder`` on the meta device, for latents that are unpacked already."""
    decoder.adapter = replace(decoder.adapter, unpack=already_latents)
    if decoder.module is not None:
        decoder.module = clone(decoder.module, _on_meta)
    return decoder


def _on_meta(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="meta")


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Make attention keep what fused kernels keep; on the meta device it keeps scores too."""
    usual = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        if not query.is_meta or query.ndim != 4 or options.get("enable_gqa"):  # of another thread, or not fused
            return usual(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield
