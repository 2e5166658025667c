"""Measure what a CLIP knows, and write it beside its weights, so that images and prompts of other kinds are told.

    python training/domain_statistics.py --data ../shared/data/emoji64-train.parquet \
        --held_out ../shared/data/emoji64-val.parquet \
        --unlike ../shared/data/clothing64.parquet ../shared/data/grocery64.parquet

It writes ``domain.safetensors`` (see ``clip_guidance/clip/domain.py``) into the folder of each CLIP, and prints the
rates of both kinds, each on images that had no part in what is tested: held-out images against a threshold from the
other half of them, and each set of other images against statistics from the other sets. Run it after the weights have
changed: statistics of other weights are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clip_guidance.clip import CLIP
from clip_guidance.clip.domain import fit_domain
from clip_guidance.clip.hub import PACKAGED, packaged_models
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Whose domain to measure, and on which images."""

    data: list[str]  # what the CLIPs were trained on
    held_out: str  # images of the same kind that they were not trained on
    unlike: list[str]  # two sets or more of images of other kinds
    clips: list[str] = field(default_factory=lambda: ["emoji", "emoji-judge"])  # packaged names or folders of CLIPs
    name: str = "emoji of 64 pixels"  # of what they know, for messages
    exclude_captions_containing: str | None = "skin tone"  # leave out these training images, as the training did


def main(settings: Settings) -> None:
    if len(settings.unlike) < 2:
        raise SystemExit(f"expected two sets of other images or more (--unlike), got {len(settings.unlike)}")
    exclude = settings.exclude_captions_containing
    own = CaptionedImages.join([CaptionedImages.load(path, exclude=exclude) for path in settings.data])
    held_out = CaptionedImages.load(settings.held_out)
    other = [CaptionedImages.load(path) for path in settings.unlike]
    captions = [text for row in own.rows for text in (row.prompt, row.name, *row.keywords, *row.captions)]
    for name in settings.clips:
        clip = CLIP.from_pretrained(name)
        sets = [clip.encode_image(each.images) for each in (own, held_out, *other)]
        print(f"{name}: {report(clip, settings, *sets)}", flush=True)
        domain = fit_domain(clip, settings.name, sets[0], sets[1], torch.cat(sets[2:]), captions)
        domain.save(PACKAGED / name / "clip" if name in packaged_models() else Path(name))


def report(clip: CLIP, settings: Settings, own: Tensor, held_out: Tensor, *other: Tensor) -> str:
    """Name the share of each set that is called unlike."""
    half = fit_domain(clip, "", own, held_out[::2], torch.cat(other))
    found = {settings.held_out: half.unlike(held_out[1::2])}
    for place, (path, embeds) in enumerate(zip(settings.unlike, other, strict=True)):
        rest = torch.cat([each for number, each in enumerate(other) if number != place])
        found[path] = fit_domain(clip, "", own, held_out, rest).unlike(embeds)
    return ", ".join(f"{Path(path).name} {unlike.double().mean():.1%}" for path, unlike in found.items())


if __name__ == "__main__":
    main(parse_settings(Settings))
