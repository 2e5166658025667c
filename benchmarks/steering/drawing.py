"""Draw the images of one method, a file per batch that an interruption leaves whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from prompt_sets import Item
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import clip_guidance as cg
from clip_guidance.guidance.clip_reward import CLIPReward
from clip_guidance.guidance.methods import recurrent


@dataclass(frozen=True)
class Method:
    """One cell of the table: what the pipeline is called with, and what steers it.

    Attributes:
        family: methods that differ in strength or cost alone; one line of the plot.
        name: tells the cell from the others of its family.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance; 1 is none.
        use_prompt: False to give the pipeline the empty text.
        eta: of DDIM; 0 draws no noise on the way.
        best_of: candidates, of which the guide keeps the one that it likes best.
        scale, mode, options: of ``CLIPGuidance``; scale 0 is none. The option ``noisy_too`` is the scale of a
            second guidance, in mode "noisy", around the first. The option ``ascent`` is no guidance's: what
            ``optimize_noise`` is called with, whose noise is drawn from then.
        times: how often each step between 0.3 and 0.6 of them is taken (time travel).
    """

    family: str
    name: str
    steps: int = 10
    guidance_scale: float = 3.0
    use_prompt: bool = True
    eta: float = 0.0
    best_of: int = 1
    scale: float = 0.0
    mode: Any = "x0"
    options: dict[str, Any] = field(default_factory=dict)
    times: int = 1

    @property
    def title(self) -> str:
        return f"{self.family}, {self.name}" if self.name else self.family


@dataclass(frozen=True)
class Cell:
    """The images of one method.

    Attributes:
        images: uint8 (n, 3, H, W).
        guide: (n,), cosine of each with its prompt, by the guide: what it maximised, and no evidence.
        cost: sums over all images: ``seconds``, and ``denoiser``, ``decoder``, ``clip``, numbers of images that
            went through each.
    """

    images: Tensor
    guide: Tensor
    cost: dict[str, float]


class Drawer:
    """A pipeline and its guide.

    Args:
        pipe: a Stable Diffusion pipeline.
        clip: the guide.
        batch_size: images per batch.
        seed: image number i begins with the noise of seed + i, whatever the method.
    """

    def __init__(self, pipe: Any, clip: cg.CLIP, batch_size: int, seed: int):
        self.pipe, self.clip, self.batch_size, self.seed = pipe, clip, batch_size, seed
        digest = hashlib.sha256(clip.fingerprint().encode())
        for module in (pipe.unet, pipe.vae):
            for tensor in module.state_dict().values():
                digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def paths(self, root: Path, method: Method, items: Sequence[Item]) -> list[Path]:
        """Files of the batches: another method, model or prompt has another file."""
        title = re.sub(r"[^a-z0-9.]+", "-", method.title.lower()).strip("-")
        paths = []
        for start in range(0, len(items), self.batch_size):
            prompts = [item.prompt for item in items[start : start + self.batch_size]]
            what = json.dumps([repr(method), self.fingerprint, self.seed, start, prompts])
            paths.append(root / title / f"{start:06d}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.safetensors")
        return paths

    def draw_all(self, root: Path, method: Method, items: Sequence[Item], share: slice = slice(None)) -> Iterator[int]:
        """Draw the batches of ``share`` that are not there yet; yield the number of images after each."""
        starts = range(0, len(items), self.batch_size)
        for start, path in list(zip(starts, self.paths(root, method, items), strict=True))[share]:
            batch = items[start : start + self.batch_size]
            if not path.is_file():
                tensors, cost = self.draw(method, [item.prompt for item in batch], start)
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(f".part{os.getpid()}")
                save_file(tensors, part, metadata={"cost": json.dumps(cost)})
                part.rename(path)
            yield len(batch)

    def draw(self, method: Method, prompts: list[str], start: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Images number ``start`` and following, and what they cost."""
        meter = Meter({"denoiser": self.pipe.unet, "decoder": self.pipe.vae.decoder, "clip": self.clip.image_encoder})
        with meter:
            tries = [self._run(method, prompts, start, candidate) for candidate in range(method.best_of)]
            likes = torch.stack([self._cosine(images, prompts) for images in tries]) if len(tries) > 1 else None
        best = likes.argmax(0) if likes is not None else torch.zeros(len(prompts), dtype=torch.long)
        images = torch.stack(tries)[best, torch.arange(len(prompts))]
        return {"images": images, "guide": self._cosine(images, prompts)}, meter.cost

    def _run(self, method: Method, prompts: list[str], start: int, candidate: int) -> Tensor:
        seeds = [self.seed + start + i + 1_000_003 * candidate for i in range(len(prompts))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = (self._ascended if "ascent" in method.options else self._steered)(method, prompts, generators)
        return (images.cpu().float() * 255).round().to(torch.uint8)

    def _steered(self, method: Method, prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        guidances = []
        if method.scale:
            how = {"mode": method.mode, "decoding": None, **method.options}  # in full, as it is in any case
            if noisy_too := how.pop("noisy_too", 0.0):
                guidances.append(cg.CLIPGuidance(self.clip, prompts, scale=noisy_too, mode="noisy", damping=0.0))
            guidances.append(cg.CLIPGuidance(self.clip, prompts, scale=method.scale, **how))
        with contextlib.ExitStack() as stack:
            if method.times > 1:
                stack.enter_context(recurrent(self.pipe.scheduler, method.times, (0.3, 0.6)))
            for guidance in guidances:
                stack.enter_context(guidance.attach(self.pipe))
            return self.pipe(
                prompts if method.use_prompt else [""] * len(prompts),
                num_inference_steps=method.steps,
                guidance_scale=method.guidance_scale,
                eta=method.eta,
                generator=generators,
                output_type="pt",
            ).images

    def _ascended(self, method: Method, prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        """Draw from the best noise that gradient ascent finds, beginning with the noise of the other methods."""
        unet = self.pipe.unet.config
        shape = (len(prompts), unet.in_channels, unet.sample_size, unet.sample_size)
        call = {"num_inference_steps": method.steps, "guidance_scale": method.guidance_scale, "output_type": "pt"}
        call |= {"prompt": prompts, "latents": randn_tensor(shape, generators, self.pipe.device)}
        found = cg.optimize_noise(self.pipe, CLIPReward(self.clip, prompts), **method.options["ascent"], **call)
        return torch.stack(found.images)

    def _cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.clip.encode_image(images) * self.clip.encode_text(prompts)).sum(-1).cpu()


def load_cell(paths: Sequence[Path]) -> Cell:
    """Load the images in these files, in order."""
    images, guide = [], []
    cost: dict[str, float] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            images.append(file.get_tensor("images"))
            guide.append(file.get_tensor("guide"))
            for name, value in json.loads(file.metadata()["cost"]).items():
                cost[name] = cost.get(name, 0.0) + value
    return Cell(torch.cat(images), torch.cat(guide), cost)


class Meter:
    """Counts, inside a ``with`` block, the images that pass through networks, and the seconds.

    On the CPU the seconds are those that the process computed, all threads together: they do not grow when other
    processes use the machine.
    """

    def __init__(self, networks: dict[str, nn.Module]):
        self.networks, self.cost = networks, dict.fromkeys(networks, 0.0)
        self.clock = time.perf_counter if next(iter(networks.values())).device.type == "cuda" else time.process_time

    def __enter__(self) -> Meter:
        def count(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                given = args[0] if args else next(iter(kwargs.values()))
                self.cost[name] += len(given)

            return hook

        self._hooks = [
            module.register_forward_pre_hook(count(name), with_kwargs=True) for name, module in self.networks.items()
        ]
        self._began = self.clock()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cost["seconds"] = self.clock() - self._began
        for hook in self._hooks:
            hook.remove()
