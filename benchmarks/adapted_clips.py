r"""Time encoding by an adapted CLIP against its library alone: the same weights, images and threads, interleaved.

    python benchmarks/adapted_clips.py --output benchmarks/adapted_clips.md

A SigLIP of transformers is wrapped, and a ViT of open_clip is wrapped and loaded from a folder in its format. open_clip
is an optional extra; where it cannot be imported its rows are left out, and the table says why.

The weights are random, of the size of a ViT-S/16. All sides are given PIL images, and take turns batch by batch, each
first in its turn, so that whatever else the machine does falls on all. Times are of the processor, not of the clock.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file

import clip_guidance as cg
from clip_guidance.training.settings import parse_settings

OPEN_CLIP_VIT = "ViT-S-16"  # of width 384

Encode = Callable[[list[Image.Image]], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    images: int = 256  # number of images that each side encodes
    batch_size: int = 16  # images that are encoded at once
    side: int = 320  # height and width of the images, in pixels
    only: str = ""  # measure only the library of this name: transformers or open_clip
    output: str = "benchmarks/adapted_clips.md"  # Markdown file for the tables


def siglip() -> dict[str, Encode]:
    """A SigLIP with random weights: by the library alone, first, and adapted."""
    torch.manual_seed(0)
    tower = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    config = transformers.SiglipConfig(text_config={**tower, "num_hidden_layers": 1}, vision_config=tower)
    model, processor = transformers.SiglipModel(config).eval(), transformers.SiglipImageProcessorPil()
    tokenizer = cg.CLIP.from_pretrained("emoji").tokenizer  # no text is encoded

    def library(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, return_tensors="pt")
        return F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)

    return {"transformers": library, "wrapped": cg.CLIP.wrap(model, tokenizer, processor).encode_image}


def open_clip_vit() -> dict[str, Encode]:
    """A ViT of open_clip with random weights: by the library alone, first, wrapped, and loaded from a folder.

    Raises:
        ImportError: open_clip cannot be imported.
    """
    library, transform = (importlib.import_module(name) for name in ("open_clip", "open_clip.transform"))
    torch.manual_seed(0)
    model = library.create_model(OPEN_CLIP_VIT).eval()
    preprocess_cfg = model.visual.preprocess_cfg
    preprocess = transform.image_transform_v2(transform.PreprocessCfg(**preprocess_cfg), is_train=False)
    tokenizer = library.get_tokenizer(OPEN_CLIP_VIT)

    def alone(images: list[Image.Image]) -> torch.Tensor:
        return model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)

    with TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder) / "open_clip_model.safetensors")
        described = {"model_cfg": library.get_model_config(OPEN_CLIP_VIT), "preprocess_cfg": preprocess_cfg}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(described))
        loaded = cg.CLIP.from_pretrained(folder, tokenizer=cg.CLIP.from_pretrained("emoji").tokenizer)
    wrapped = cg.CLIP.wrap(model, tokenizer, preprocess)
    return {"open_clip": alone, "wrapped": wrapped.encode_image, "from_pretrained": loaded.encode_image}


@dataclass(frozen=True)
class Timed:
    """Seconds of the processor for each batch, by side, the library first, and the largest difference to it."""

    seconds: dict[str, list[float]]
    largest: float


@torch.no_grad()
def measure(sides: dict[str, Encode], settings: Settings) -> Timed:
    """Let the sides encode the same images, batch by batch in turn."""
    rng = np.random.default_rng(0)
    shape = (settings.batch_size, settings.side, settings.side, 3)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for encode in sides.values():  # a first batch that does not count
        encode([Image.fromarray(array) for array in rng.integers(0, 256, (2, *shape[1:]), dtype=np.uint8)])
    largest, names = 0.0, list(sides)
    for turn in range(settings.images // settings.batch_size):
        images = [Image.fromarray(array) for array in rng.integers(0, 256, shape, dtype=np.uint8)]
        embeds = {}
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            embeds[name] = sides[name](images)
            seconds[name].append(time.process_time() - start)
        largest = max(largest, *(float((each - embeds[names[0]]).abs().max()) for each in embeds.values()))
    return Timed(seconds, largest)


def table(timed: Timed) -> str:
    """The rows of one library's sides, with their ratios to the library alone."""
    (library, alone), *_ = timed.seconds.items()
    lines = ["| | seconds of the processor | of the sums | median of a batch | of the batches |", "|" + " --- |" * 5]
    for name, took in timed.seconds.items():
        ratio = median(one / other for one, other in zip(took, alone, strict=True))
        lines.append(f"| {name} | {sum(took):.1f} | {sum(took) / sum(alone):.3f} | {median(took):.2f} | {ratio:.3f} |")
    return "\n".join(lines) + f"\n\nLargest difference of two vectors to those of {library}: {timed.largest:.1e}.\n"


def main(settings: Settings) -> None:
    text = (
        f"Encoding {settings.images} images of {settings.side} pixels by a ViT of width 384, 12 layers, 224 pixels, in "
        f"batches of {settings.batch_size}, on {torch.get_num_threads()} thread of a CPU; each library's sides in "
        "turn, batch by batch.\n"
    )
    for name, make in {"transformers": siglip, "open_clip": open_clip_vit}.items():
        if settings.only in ("", name):
            try:
                sides = make()
            except ImportError as error:
                text += f"\n{name}: not measured, since it cannot be imported ({error}).\n"
            else:
                text += f"\n{table(measure(sides, settings))}"
    Path(settings.output).write_text(text)
    print(text)


if __name__ == "__main__":
    main(parse_settings(Settings))
