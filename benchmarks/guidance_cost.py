r"""Measure a guided step's seconds and memory, beside diffusers' community pipeline's.

    python benchmarks/guidance_cost.py --size sd15 --device cuda --dtype float16 \
        --community clip_guided_stable_diffusion.py --output benchmarks/guidance_cost.md

``--community`` is the path of your copy of ``examples/community/clip_guided_stable_diffusion.py`` of
https://github.com/huggingface/diffusers; it is not in the pip package. Without it, its rows are left out.

Both sides get the same networks (real sizes, random weights: ``_cost_models.py``), scheduler, prompt, seed, image
size, number of steps, classifier-free guidance, and the same guide: as a ``transformers`` CLIPModel there, as a
:class:`clip_guidance.CLIP` here. ``--cutouts`` is the number of cutouts on both; with 1, both look at the whole image
(``use_cutouts=False`` there).

The community pipeline runs from its own file, unchanged but for this:

1. It imports ``torchvision.transforms`` for ``Normalize`` and ``Resize``. Where torchvision is not installed, these two
   are stood in for by the tensor operations that they are, during the import alone.
2. ``CLIPModel.get_text_features`` and ``get_image_features`` return an output object since transformers 5, and the
   pipeline calls ``.norm`` on it. On the one CLIPModel that it is given, they return that object's ``pooler_output``,
   which is the tensor they used to return.
3. It takes the latents' side for an eighth of ``height``, also for a decoder that enlarges by another factor (the
   packaged emoji pipeline's by 4), so it is asked for eight times the latents' side.

The community pipeline has two rows. Loaded as its documentation says, the weights of UNet and VAE want gradients, so
activations are kept for gradients that nobody takes; "frozen" does what ``freeze_unet()`` and ``freeze_vae()`` do
first, which its documentation does not mention. The ratios are to the frozen one, the better of the two. Attention is
not sliced.

"auto" is the default of a guidance: latents are shrunk as far as the guide reads, where a check passes. The check
itself is not timed, since its outcome is kept from the run that measures memory. That it passes with random weights
tells nothing of trained ones.

Time: a forward-pre-hook on the denoiser marks the beginning of each step (the first call with a new timestep), so a
step is everything from there to the next mark: denoiser, guidance, scheduler. One run of each row in turn, ``repeats``
times over; the medians over the runs of the seconds per step, and of the ratio to the other row's run in the same turn.
Runs are cut off at the last mark, before the final decode. On a GPU seconds are those of the clock, once the device has
finished; on the CPU those that the process spent computing, so that other processes hardly matter. With ``--threads 1``
these are also the clock's on an idle machine; with more, threads that wait for each other count too.

Memory: the most that torch's allocator had given out at any one time during two steps, above what it held at the
beginning of the first of them, when weights and embeddings are loaded. On a GPU ``torch.cuda.max_memory_allocated``;
on the CPU the same sum over the allocations and releases that ``torch.profiler`` records, in a run that is not timed.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from _cost_meters import Run, step_peak_bytes, step_seconds
from _cost_models import Components, make_components
from torch import Tensor
from transformers import CLIPModel

import clip_guidance as cg
from clip_guidance.guidance.engine.decoder import Decoding
from clip_guidance.training.settings import parse_settings

PROMPT = "a red apple on a wooden table"
UNGUIDED, COMMUNITY, FROZEN = "unguided", "community pipeline", "community pipeline, frozen"


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    size: Literal["tiny", "small", "emoji", "sd15", "sdxl"] = "small"  # of the networks
    community: str = ""  # path of clip_guided_stable_diffusion.py; its rows are left out without it
    clip: str = ""  # guide of sd15 and sdxl: b32 (default), b16, l14
    height: int = 0  # side of the square image, in pixels; 0 for the size's own
    device: str = "cpu"  # torch device
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # precision of the networks
    steps: int = 2  # timed steps per run
    repeats: int = 5  # timed runs per row
    cutouts: int = 4  # per image, on both sides
    guidance_scale: float = 7.5  # of classifier-free guidance
    seed: int = 0  # of weights and noise
    threads: int = 0  # of the CPU; 0 leaves them as they are
    only: str = ""  # run only the rows whose name contains this, and the unguided one
    json: bool = False  # print the rows as JSON instead of a table
    output: str = ""  # Markdown file to append the table to


@dataclass(frozen=True)
class Row:
    """One row of the table; ratios to the community pipeline are None without it."""

    name: str
    seconds: float  # a step, median
    seconds_to_unguided: float
    seconds_to_community: float | None
    peak_mib: float
    peak_to_community: float | None
    timed: list[float]  # seconds per step of each run


def cases(components: Components, settings: Settings) -> dict[str, Run]:
    """Return what to run, by the name of its row."""

    def guided(mode: str = "x0", **decoding: Any) -> Run:
        options = {"scale": 10.0, "cutouts": settings.cutouts, "mode": mode, "decoding": Decoding(**decoding)}
        return ours(components, settings, cg.CLIPGuidance(components.clip, PROMPT, **options))

    runs = {
        UNGUIDED: ours(components, settings, None),
        "x0": guided(),
        "exact": guided("exact"),
        "x0, auto": guided(resolution="auto"),
        "exact, auto": guided("exact", resolution="auto"),
        "x0, checkpoint": guided(checkpoint=True),
        "exact, checkpoint": guided("exact", checkpoint=True),
        "x0, resolution 1/2": guided(resolution=0.5),
        "exact, resolution 1/2": guided("exact", resolution=0.5),
    }
    if (tiny := components.tiny_decoder) is not None:
        runs |= {"x0, tiny decoder": guided(decoder=tiny), "exact, tiny decoder": guided("exact", decoder=tiny)}
    if settings.community:
        pipe = community_pipeline(components, settings)
        runs |= {COMMUNITY: community(pipe, components, settings), FROZEN: community(pipe, components, settings, True)}
    return {name: run for name, run in runs.items() if settings.only in name or name in (UNGUIDED, FROZEN)}


def ours(components: Components, settings: Settings, guidance: cg.Guidance | None) -> Run:
    """Run the stock pipeline, guided or not."""

    def run(steps: int) -> None:
        with guidance.attach(components.pipe) if guidance else nullcontext():
            size = {"height": components.side, "width": components.side}
            components.pipe(num_inference_steps=steps, **size, **arguments(settings))

    return run


def community_pipeline(components: Components, settings: Settings) -> Any:
    """Make the community pipeline of the same components, with repairs 1 and 2."""
    pipe = load_community(Path(settings.community))(
        **{name: getattr(components.pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        clip_model=with_plain_features(components.clip_model),
        feature_extractor=components.feature_extractor,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def community(pipe: Any, components: Components, settings: Settings, frozen: bool = False) -> Run:
    """Run the community pipeline, with repair 3."""
    side = 8 * components.side // components.pipe.vae_scale_factor
    options = {"height": side, "width": side, "use_cutouts": settings.cutouts > 1, "num_cutouts": settings.cutouts}

    def run(steps: int) -> None:
        networks = (pipe.unet, pipe.vae) if frozen else ()
        for network in networks:
            network.requires_grad_(False)
        try:
            pipe(num_inference_steps=steps, **options, **arguments(settings))
        finally:
            for network in networks:
                network.requires_grad_(True)  # as the other rows get them

    return run


def arguments(settings: Settings) -> dict[str, Any]:
    """Return what every row is called with."""
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    return {"prompt": PROMPT, "guidance_scale": settings.guidance_scale, "generator": generator}


def load_community(path: Path) -> Any:
    """Load the pipeline's class from its own file, with repair 1."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(spec)
    stand_in = importlib.util.find_spec("torchvision") is None
    if stand_in:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision"].transforms = types.SimpleNamespace(Normalize=normalize, Resize=resize)  # type: ignore
    try:
        spec.loader.exec_module(module)
    finally:
        if stand_in:
            del sys.modules["torchvision"]
    return module.CLIPGuidedStableDiffusion


def normalize(mean: list[float], std: list[float]) -> Callable[[Tensor], Tensor]:
    """``torchvision.transforms.Normalize`` of tensors."""
    return lambda x: (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def resize(side: int) -> Callable[[Tensor], Tensor]:
    """``torchvision.transforms.Resize`` of square tensors."""
    return lambda x: F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)


def with_plain_features(model: CLIPModel) -> CLIPModel:
    """Repair 2, on this one model."""
    for name in ("get_text_features", "get_image_features"):
        method = getattr(model, name)
        setattr(model, name, lambda *args, method=method: method(*args).pooler_output)
    return model


def measure(components: Components, settings: Settings) -> list[Row]:
    """All rows: memory first, which warms everything up, then the timed runs in turn."""
    denoiser, runs = components.pipe.unet, cases(components, settings)
    peaks: dict[str, float] = {}
    timed: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        if settings.device != "cpu":
            step_peak_bytes(denoiser, run)  # the first run also chooses algorithms, which takes memory
        peaks[name] = step_peak_bytes(denoiser, run) / 2**20
    for _ in range(settings.repeats):
        for name, run in runs.items():
            timed[name].append(step_seconds(denoiser, run, settings.steps))

    def ratio(name: str, base: str) -> float:
        """Within each turn, then the median: what slows a whole turn down cancels."""
        return statistics.median(one / other for one, other in zip(timed[name], timed[base], strict=True))

    return [
        Row(
            name,
            statistics.median(timed[name]),
            ratio(name, UNGUIDED),
            ratio(name, FROZEN) if FROZEN in runs else None,
            peaks[name],
            peaks[name] / peaks[FROZEN] if FROZEN in runs else None,
            timed[name],
        )
        for name in runs
    ]


def table(rows: list[Row], components: Components, settings: Settings) -> str:
    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    on_gpu = settings.device != "cpu"
    header = ("", "s / step" if on_gpu else "CPU s / step", "to unguided", "to community", "peak MiB", "to community")
    lines = [header, ("---", *["---:"] * 5)]
    for row in rows:
        seconds = (f"{row.seconds:.3g}", ratio(row.seconds_to_unguided), ratio(row.seconds_to_community))
        lines.append((row.name, *seconds, f"{row.peak_mib:.0f}", ratio(row.peak_to_community)))
    cells = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU thread(s)"
    guide = components.clip.config.vision_config
    return (
        f"`{settings.size}`, {components.side} × {components.side}, guide ViT {guide.num_hidden_layers} × "
        f"{guide.hidden_size} on patches of {guide.patch_size}, {settings.cutouts} cutouts, CFG "
        f"{settings.guidance_scale:g}, {settings.dtype}, {where}, torch {torch.__version__}; median of "
        f"{settings.repeats} runs of {settings.steps} steps\n\n{cells}\n"
    )


def main(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.community and not (settings.community.endswith(".py") and Path(settings.community).is_file()):
        raise SystemExit(f"--community: expected the path of clip_guided_stable_diffusion.py, got {settings.community}")
    if settings.size == "sdxl" and settings.community:
        raise SystemExit("--community: that pipeline is for Stable Diffusion 1 only; leave it out for sdxl")
    dtype = getattr(torch, settings.dtype)
    components = make_components(settings.size, settings.height, settings.clip, settings.device, dtype, settings.seed)
    components.pipe.set_progress_bar_config(disable=True)
    rows = measure(components, settings)
    text = table(rows, components, settings)
    if not settings.community:
        print("without --community there are no rows of the community pipeline, and no ratios to it", file=sys.stderr)
    if settings.output:
        with Path(settings.output).open("a") as file:
            file.write(f"{text}\n")
    print(json.dumps([asdict(row) for row in rows]) if settings.json else text)


if __name__ == "__main__":
    main(parse_settings(Settings))
