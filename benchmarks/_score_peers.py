"""Score with transformers and torchmetrics for ``score_equality.py``, without ``clip_guidance``.

    python benchmarks/_score_peers.py CLIP_FOLDER REQUEST.json

It runs where torchmetrics is, which need not be where the project is. The request has ``images`` (paths), ``prompts``
and ``long_prompts``, one each an image; what was found is printed as JSON. Cosines by hand take transformers' own
CLIPModel, tokenizer and image processor and nothing else.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

PREFIX = "A photo depicts "  # Hessel et al. 2021
PAIR = ["Good photo.", "Bad photo."]  # Wang et al. 2023


class TensorFeatures:
    """Return features as tensors, as before transformers 5 and as torchmetrics expects them."""

    def __init__(self, model: CLIPModel):
        self.model, self.config = model, model.config

    def to(self, device: Any) -> TensorFeatures:
        return self

    def get_image_features(self, *inputs: Any) -> torch.Tensor:
        return features(self.model.get_image_features(*inputs))

    def get_text_features(self, *inputs: Any) -> torch.Tensor:
        return features(self.model.get_text_features(*inputs))


def features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def by_hand(model: CLIPModel, processor: CLIPProcessor, request: dict[str, list[str]]) -> dict[str, Any]:
    """Compute every image's cosines with its texts, cut to the context with their end token kept."""
    prompts = request["prompts"]
    texts = {"prompts": prompts, "prefixed": [PREFIX + prompt for prompt in prompts], "long": request["long_prompts"]}

    def unit(embeds: torch.Tensor) -> torch.Tensor:
        return embeds / embeds.norm(dim=-1, keepdim=True)

    def encode(texts: list[str]) -> torch.Tensor:
        tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return unit(features(model.get_text_features(**tokens)))

    parts = []
    for path in request["images"]:
        with Image.open(path) as image:
            pixels = processor.image_processor(image, return_tensors="pt").pixel_values
        parts.append(unit(features(model.get_image_features(pixels))))
    images = torch.cat(parts)
    found = {name: (images * encode(own)).sum(-1).tolist() for name, own in texts.items()}
    return {**found, "pair": (images @ encode(PAIR).T).tolist()}


def by_torchmetrics(model: CLIPModel, processor: CLIPProcessor, request: dict[str, list[str]]) -> dict[str, Any]:
    """Its ``clip_score`` as released, and with features that are tensors; or why there is none."""
    try:
        import torchmetrics
        from torchmetrics.functional.multimodal import clip_score
    except ImportError as error:
        return {"version": None, "error": str(error)}

    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in request["images"]]
    found: dict[str, Any] = {"version": torchmetrics.__version__, "error": None}
    try:
        found["released"] = clip_score(images, request["prompts"], lambda: (model, processor)).item()
    except Exception as error:  # whatever it is: the table says so
        found["error"] = f"{type(error).__name__}: {error}"
    usable = TensorFeatures(model)

    def each(prompts: list[str]) -> list[float]:
        pairs = zip(images, prompts, strict=True)
        return [clip_score(image, prompt, lambda: (usable, processor)).item() for image, prompt in pairs]

    found["mean"] = clip_score(images, request["prompts"], lambda: (usable, processor)).item()
    return {**found, "each": each(request["prompts"]), "long": each(request["long_prompts"])}


@torch.no_grad()
def main(folder: str, request_path: str) -> None:
    warnings.simplefilter("ignore")  # of the long prompts
    request = json.loads(Path(request_path).read_text())
    model = CLIPModel.from_pretrained(folder).eval()
    image_processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    processor = CLIPProcessor(image_processor, tokenizer)
    found = {
        "transformers": {"version": transformers.__version__, **by_hand(model, processor, request)},
        "torchmetrics": by_torchmetrics(model, processor, request),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
