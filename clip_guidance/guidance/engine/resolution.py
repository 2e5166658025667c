"""How far latents are shrunk before the decoder, so that it decodes no larger than the reward reads.

A CLIP that reads S pixels is given an image of about S instead of H pixels, from latents of S/H of their side. Averaged
latents are not those of a smaller image, so that the map is fitted for each autoencoder, linear and local, by least
squares: it takes the latents z of an image to those of the image resized,

    A = argmin ||A z - encode(resize(image))||²,    4 x 4 latents, of twice the side that is wanted, to one.

No decoder is sure to know such latents, so the smaller decode is held against the full one by the reward's CLIP,

    cos(e(decode(A z)), e(decode(z))) >= 0.98,    on average over other images,

for each view: the whole image and, with cutouts, the smallest crop of its middle. The smallest size that passes is
used; where none does, the image is decoded in full. The images are dead leaves, disks that cover each other, with the
edges and the scales of natural images (Lee, Mumford & Huang 2001, "Occlusion Models for Natural Images").

All this is a function of the weights, of the reward's views and of the shape of the latents. Prompt, seed, batch, step
and threads have no part in it, and no random generator is touched, so that equal calls draw equal images, whether or
not the check ran before. It is kept for each decoder, and made again once weights have changed.
"""

import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from clip_guidance.guidance.decoding import DecodingChoice
from clip_guidance.guidance.reading import Reading, readings

LEAST_COSINE = 0.98
FITTED, CHECKED = range(0, 2), range(2, 5)  # seeds of the images
_RIDGE = 1e-3  # of the variance of a latent
_SMALL = 4  # side of the latents whose image tells by how much the decoder enlarges


@dataclass(frozen=True)
class Shrinking:
    """Map latents (..., C, h, w) to the smallest even sides that are no less than a share of theirs.

    Attributes:
        share: The share, in (0, 1).
        weight: The fitted map, (C, C, 4, 4).
        bias: Its offset, (C,).
    """

    share: float
    weight: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Shrink latents, differentiably."""
        size = [_shorter(self.share, side) for side in latents.shape[-2:]]
        frames = latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)
        weight, bias = self.weight.to(frames), self.bias.to(frames)
        smaller = F.conv2d(_doubled(frames, size), weight, bias, stride=2)
        return smaller if latents.ndim == 4 else smaller.unflatten(0, (len(latents), -1)).transpose(1, 2)


@dataclass(frozen=True)
class Resolution:
    """Hold what was chosen, and how latents are shrunk; None for not at all."""

    choice: DecodingChoice
    shrink: Shrinking | None = None


_kept: WeakKeyDictionary[nn.Module, dict[Any, Resolution]] = WeakKeyDictionary()


def full(reason: str, cosine: float | None = None) -> Resolution:
    """Choose the full decode."""
    return Resolution(DecodingChoice(1.0, cosine, reason))


@dataclass(frozen=True)
class Codec:
    """Hold a decoder with its encoder.

    Attributes:
        network: The autoencoder.
        decode: From what the decoder reads, (B, C, h, w) or (B, C, F, h, w), to images in [0, 1].
        latents: Latents, of which the shape, the precision and the device count.
    """

    network: Any
    decode: Callable[[Tensor], Tensor]
    latents: Tensor

    def image_size(self) -> tuple[int, int]:
        """Find the height and the width to which latents are decoded, by decoding small ones."""
        middle = [1] * (self.latents.ndim - 4)
        image = self.decode(self.latents.new_zeros(1, self.latents.shape[1], *middle, _SMALL, _SMALL))
        height, width = (round(side * image.shape[-1] / _SMALL) for side in self.latents.shape[-2:])
        return height, width

    def image(self, latents: Tensor) -> Tensor:
        """Decode one image (1, 3, H, W) in [0, 1]; of a video the first."""
        images = self.decode(latents)
        return (images if images.ndim == 4 else images[:, :, 0]).expand(-1, 3, -1, -1)

    def encode(self, image: Tensor) -> Tensor:
        """Encode an image (1, 3, H, W) in [0, 1] as one frame of what the decoder reads.

        Raises:
            ValueError: The encoder makes latents of another number of channels.
        """
        pixels = (2 * image - 1).to(self.latents.device, next(self.network.parameters()).dtype)
        if any(isinstance(each, nn.Conv3d) for each in getattr(self.network, "encoder", self.network).modules()):
            pixels = pixels.unsqueeze(2)  # it encodes videos
        (found, *_) = self.network.encode(pixels, return_dict=False)
        encoded = (found if isinstance(found, Tensor) else found.mode()).to(self.latents.dtype)
        if encoded.ndim > self.latents.ndim:
            encoded = encoded.squeeze(2)
        elif encoded.ndim < self.latents.ndim:
            encoded = encoded.unsqueeze(2)
        if encoded.shape[1] != self.latents.shape[1]:
            raise ValueError(f"the encoder makes {tuple(encoded.shape)} of an image, not {tuple(self.latents.shape)}")
        return encoded


@torch.no_grad()
def choose(reward: Any, codec: Codec) -> Resolution:
    """Choose the share of their side to which latents are shrunk for a reward."""
    read_by = readings(reward)
    if read_by is None:
        return full("it is not known how large an image the reward reads")
    if not isinstance(codec.network, nn.Module) or not hasattr(codec.network, "encode"):
        return full("there is no encoder, with whose latents a smaller decode could be checked")
    if any(hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in codec.network.modules()):
        return full("the autoencoder is compiled, and would be once more for each other size")
    try:
        size = codec.image_size()
        needed = [each.shares(*size) for each in read_by]
        least = max(whole for whole, *_ in needed)
        shares = sorted({share for each in needed for share in each if share >= least and _shrinks(share, codec)})
        if not shares:
            return full("the image is no larger than what the reward reads")
        views = tuple((weakref.ref(each.network), _checksum(each.network), each.smallest) for each in read_by)
        known = _kept.setdefault(codec.network, {})
        key = codec.latents.shape[1:], codec.latents.device, _checksum(codec.network), views, tuple(shares)
        if key not in known:
            known[key] = _checked(shares, read_by, codec, size)
        return known[key]
    except Exception as error:  # of another project's encoder; the full decode needs none
        return full(f"a smaller decode could not be checked: {type(error).__name__}: {error!s:.120}")


def _checked(shares: list[float], read_by: list[Reading], codec: Codec, size: tuple[int, int]) -> Resolution:
    """Choose the least of rising ``shares`` at which the readings change by little."""

    def seen(latents: Tensor) -> list[Tensor]:
        image = codec.image(latents)
        return [each.embeds(image) for each in read_by]

    images = [dead_leaves(seed, *size) for seed in CHECKED]
    probes = [codec.encode(image) for image in images]
    expected = [seen(probe) for probe in probes]
    cosine = 0.0
    for share in shares:
        shrink = _fitted(share, codec, size)
        found = [seen(shrink(probe)) for probe in probes]
        cosine = _least_cosine(found, expected)
        if cosine >= LEAST_COSINE:
            return Resolution(DecodingChoice(share, cosine, "the reward sees nearly the same smaller"), shrink)
    return full(f"smaller, an image looks another to the reward: cosine below {LEAST_COSINE}", cosine)


def _least_cosine(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """Average the cosines (views,) of each reading over the images; return the least of all readings and views."""
    cosines = [[(a * b).sum(-1) for a, b in zip(*each, strict=True)] for each in zip(found, expected, strict=True)]
    return min(float(torch.stack(of_reading).mean(0).min()) for of_reading in zip(*cosines, strict=True))


def _fitted(share: float, codec: Codec, size: tuple[int, int]) -> Shrinking:
    """Fit the map from an image's latents to those of the image resized."""
    smaller = [_shorter(share, side) for side in codec.latents.shape[-2:]]
    scale = size[0] / codec.latents.shape[-2]
    rows, targets = [], []
    for seed in FITTED:
        image = dead_leaves(seed, *size)
        resized = F.interpolate(
            image, [round(scale * side) for side in smaller], mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
        given, wanted = (_frame(codec.encode(each)) for each in (image, resized))
        patches = F.unfold(_doubled(given, smaller), 4, stride=2)
        rows.append(torch.cat([patches, torch.ones_like(patches[:, :1])], 1)[0])
        targets.append(wanted.flatten(2)[0])
    x, y = (torch.cat(each, 1).double().cpu() for each in (rows, targets))  # (16 C + 1, n), (C, n)
    ridge = _RIDGE * x.shape[1] * y.var() * torch.eye(len(x), dtype=x.dtype)
    solution = torch.linalg.solve(x @ x.T + ridge, x @ y.T).T  # (C, 16 C + 1)
    channels = len(y)
    return Shrinking(share, solution[:, :-1].reshape(channels, channels, 4, 4), solution[:, -1])


def _frame(latents: Tensor) -> Tensor:
    return latents if latents.ndim == 4 else latents[:, :, 0]


def _doubled(latents: Tensor, size: list[int]) -> Tensor:
    """Resize latents (B, C, h, w) to twice ``size``, with one more on every side."""
    twice = F.interpolate(latents, [2 * side for side in size], mode="bicubic", align_corners=False, antialias=True)
    return F.pad(twice, (1, 1, 1, 1), mode="replicate")


def _shorter(share: float, side: int) -> int:
    return min(side, 2 * ceil(share * side / 2 - 1e-6))  # some decoders normalise patches of 2 x 2


def _shrinks(share: float, codec: Codec) -> bool:
    return any(_shorter(share, side) < side for side in codec.latents.shape[-2:])


def dead_leaves(seed: int, height: int, width: int, count: int = 600) -> Tensor:
    """Draw an image (1, 3, H, W) in [0, 1] of disks that cover each other, with radii from a power law."""
    draw, image = random.Random(seed), Image.new("RGB", (width, height))
    canvas = ImageDraw.Draw(image)
    for _ in range(count):
        radius = min(height, width) * min(0.5, 0.02 / (1 - draw.random()) ** 0.5)
        x, y = draw.uniform(0, width), draw.uniform(0, height)
        colour = draw.randrange(256), draw.randrange(256), draw.randrange(256)
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def _checksum(network: nn.Module) -> tuple[float, ...]:
    """Sum every weight and buffer, which tells whether one has changed, in whatever way."""
    tensors = [each.detach() for each in chain(network.parameters(), network.buffers()) if not each.is_meta]
    sums = [each.sum(dtype=torch.float32) for each in tensors]
    return tuple(torch.stack([each.cpu() for each in sums]).tolist()) if sums else ()
