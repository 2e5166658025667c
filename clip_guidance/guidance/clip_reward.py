"""CLIP's own logit as a reward: exp(logit_scale)·cos(image, target), averaged over cutouts.

For a text it is, up to a constant, the log-likelihood that CLIP gives to it (Radford et al. 2021, arXiv:2103.00020).
For an image as the target the same equation compares two images. The reward of a region reads that region alone
(:mod:`clip_guidance.guidance.regions`); rewards of one image are added up. The bias of a CLIP that was trained with a
sigmoid is left out: it has no gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32, sized_for_half
from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.guidance.checks import as_whole, formerly, shown
from clip_guidance.guidance.cutouts import Cutouts, View
from clip_guidance.guidance.reading import Reading
from clip_guidance.guidance.regions import Part, Region, Targets, as_parts, copied
from clip_guidance.guidance.targets import encode, weighted_sum


class CLIPReward(nn.Module):
    """Compute CLIP's logit, exp(logit_scale)·cos(image, target), of each image and its target.

    Args:
        clip: The model. Its image tower is differentiated; the targets are encoded once, at construction.
        target: A text, an image, several with weights, or regions, as for
            :class:`~clip_guidance.guidance.CLIPGuidance`; in a list of n targets each is for B/n consecutive images of
            the B images, as diffusers' ``num_images_per_prompt`` orders them.
        cutouts: Views over which the logit is averaged, of each image and of each region cut out of it; None for the
            whole alone.
        chunk: Number of views that pass through the image tower together; None for all. Fewer views take less memory
            and give the same gradient up to rounding.

    Raises:
        TypeError: ``target`` is of another type, or a weight is not a number.
        ValueError: There is no target, or an empty one; a weight or an embedding is not finite; or ``chunk`` is below
            1.
        ImageError: An image that is a target cannot be read.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> from clip_guidance.guidance import CLIPReward
        >>> reward = CLIPReward(cg.CLIP.from_pretrained("emoji"), "a red apple", cg.Cutouts(4))
        >>> images = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> rewards = reward(images)
        >>> rewards.shape
        torch.Size([2])
        >>> rewards.sum().backward()
        >>> images.grad.shape
        torch.Size([2, 3, 64, 64])
    """

    target_embeds: Tensor  # (p, d), a weighted sum of unit vectors for each of the parts
    _parts: list[Part]
    _target: Any

    @formerly("prompt", "target")
    def __init__(
        self, clip: DualEncoder, target: Targets, cutouts: Cutouts | None = None, chunk: int | None = None
    ) -> None:
        super().__init__()
        clip = as_clip(clip)
        clip.image_processor.differentiable(torch.zeros(1, 3, 8, 8))  # some cannot: say so now, not amid a run
        self.cutouts = Cutouts() if cutouts is None else cutouts
        self.chunk = chunk
        self.clip = clip
        self.register_buffer("target_embeds", self._embeds(target), persistent=False)

    @property
    def target(self) -> Any:
        """The target, or a copy of several; another one that is set is encoded at once."""
        return copied(self._target)

    @target.setter
    def target(self, target: Targets) -> None:
        self._buffers["target_embeds"] = self._embeds(target).to(self.target_embeds.device)

    #: The name of ``target`` before it could be an image.
    prompt = target

    @property
    def has_regions(self) -> bool:
        """Whether a target belongs to a part of the image, so that the reward must be given whole images."""
        return any(part.region for part in self._parts)

    @property
    def cutouts(self) -> Cutouts:
        """Views of each image over which the logit is averaged."""
        return self._cutouts

    @cutouts.setter
    def cutouts(self, cutouts: Cutouts) -> None:
        if not isinstance(cutouts, Cutouts):
            raise TypeError(f"cutouts must be Cutouts, got {type(cutouts).__name__} {shown(cutouts)}")
        self._cutouts = cutouts

    @property
    def chunk(self) -> int | None:
        """Number of views that pass through the image tower together; None for all."""
        return self._chunk

    @chunk.setter
    def chunk(self, chunk: int | None) -> None:
        self._chunk = None if chunk is None else as_whole("chunk", chunk, "at least 1 view, or None for all", 1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for the CLIP and what it made of the target.

        Raises:
            AttributeError: ``name`` is one of these, which belong together.
        """
        if name in ("clip", "target_embeds") and "target_embeds" in self._buffers:
            raise AttributeError(f"{name} cannot be set, since it goes with the target: make another CLIPReward")
        super().__setattr__(name, value)

    def _embeds(self, target: Targets) -> Tensor:
        """Encode the target, and keep it, if it is one."""
        target = copied(target)
        parts = as_parts(target)
        embeds = encode(self.clip, [term for part in parts for term in part.terms])
        of_parts = embeds.split([len(part.terms) for part in parts])
        vectors = torch.stack([weighted_sum(part.terms, own) for part, own in zip(parts, of_parts, strict=True)])
        self._target, self._parts = target, parts
        return vectors

    def reset(self) -> None:
        """Restart the random crops, so that equal runs give equal images."""
        self.cutouts.reset()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B,) of images (B, 3, H, W) in [0, 1], or (B, 1, H, W) of grey ones.

        Raises:
            ValueError: ``images`` have another shape, their number is not a multiple of the number of targets, or a
                region's mask has another aspect.
        """
        return torch.stack(list(self.parts(images))).sum(0)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the reward in parts, (B,) for each chunk of views of the image or of a region, whose sum it is."""
        if images.ndim == 4 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)  # grey
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"CLIPReward reads images (B, 3, H, W) in [0, 1], got {tuple(images.shape)}; "
                "with space='latent' a reward receives latents"
            )
        images = images.to(self.clip.device)
        embeds, each = self.target_embeds.to(images.device), self._images_per_prompt(len(images))
        views = self.cutouts.views()  # one draw, of the image and of its regions
        whole = [index for index, part in enumerate(self._parts) if part.region is None]
        if whole:
            of_prompts = embeds.new_zeros(len(images) // each, embeds.shape[1])  # a prompt may have regions alone
            of_prompts[[self._parts[index].prompt for index in whole]] = embeds[whole]
            yield from self._logits(images, of_prompts.repeat_interleave(each, dim=0), views)
        for part, embed in zip(self._parts, embeds, strict=True):
            if part.region is not None:
                first = part.prompt * each
                # Cut out in each view anew: the gradient of every chunk goes its own way back to the images.
                of_region = [_within(part.region, view) for view in views]
                for logits in self._logits(images[first : first + each], embed, of_region):
                    yield F.pad(logits, (first, len(images) - first - each))

    def readings(self) -> list[Reading] | None:
        """Return how the CLIP reads images; None if not known, and with regions, which are cut out of the whole."""
        resized = getattr(self.clip.image_processor, "resized", None)
        if self.has_regions or resized is None:
            return None
        network = getattr(self.clip, "clip", self.clip)  # of one with a cache
        smallest = self.cutouts.smallest if self.cutouts.count > 1 else 1.0
        return [Reading(network, resized, self._embed_whole, smallest)]

    def embeds_for(self, batch: int) -> Tensor:
        """Return the vector (B, d) that each image's cosine is taken with: a weighted sum of unit vectors.

        Raises:
            ValueError: A target belongs to a part of the image, or the batch is no multiple of the number of targets.
        """
        if self.has_regions:
            raise ValueError("a Region has no vector for the whole image")
        return self.target_embeds.repeat_interleave(self._images_per_prompt(batch), dim=0)

    def _logits(self, images: Tensor, embeds: Tensor, views: list[View]) -> Iterator[Tensor]:
        """Yield the logits of images and targets, for each chunk of views its share of the mean over all of them."""
        chunk = self.chunk or len(views)
        for first in range(0, len(views), chunk):
            image_embeds = self._embed(images, views[first : first + chunk])
            cosines = (image_embeds * embeds).sum(-1)  # (views, B)
            yield at_least_float32(self.clip.logit_scale).exp() * cosines.sum(0) / len(views)

    def _embed(self, images: Tensor, views: list[View]) -> Tensor:
        """Embed all views in one pass of the tower, whatever their sizes are, as (views, B, d)."""
        pixel_values = torch.cat([self.clip.image_processor.differentiable(view(images)) for view in views])
        image_embeds = sized_for_half(lambda x: self.clip.image_embeds(x.to(self.clip.dtype)), pixel_values)
        return image_embeds.unflatten(0, (len(views), -1))

    def _embed_whole(self, images: Tensor) -> Tensor:
        return self._embed(images.to(self.clip.device), [lambda images: images])[0]

    def _images_per_prompt(self, batch: int) -> int:
        prompts = self._parts[-1].prompt + 1
        if batch % prompts:
            raise ValueError(
                f"{prompts} targets cannot be shared out evenly among a batch of {batch} images; give one target, or "
                "as many as the pipeline is given prompts"
            )
        return batch // prompts


def _within(region: Region, view: View) -> View:
    return lambda images: view(region.cut_out(images))
