"""Trains a CLIP on captioned pictures with the symmetric contrastive objective, from scratch or on from another.

    accelerate launch training/train_clip.py --config training/recipes/emoji-clip.yaml

Any image tower with any text tower (``--image_tower vit|resnet --text_tower transformer|cbow``). The vocabulary is
learnt from the captions. During training, R@1 and R@5 of the held-out pictures among all names they bear are logged;
the finished CLIP is saved in ``output`` and loads with ``CLIP.from_pretrained(output)``. With ``--lora_rank`` its
adapter alone is saved too, in ``output/adapter``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTokenizer

from clip_guidance.augment import random_grey, random_holes, random_noise, random_views
from clip_guidance.cached_embeds import cached_image_embeds
from clip_guidance.checkpoints import BEST, full_state_dict
from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.data import CaptionedPictures, caption
from clip_guidance.evaluation import KS, evaluating, name_recall, retrieval_figures, zero_shot_figures
from clip_guidance.lora import add_lora, merged, save_adapter
from clip_guidance.model_card import write_model_card
from clip_guidance.objective import ContrastiveObjective, caption_groups
from clip_guidance.tokenizer import tokenize, train_tokenizer
from clip_guidance.tower_options import checkpoint_blocks, compile_towers, set_patch_dropout
from clip_guidance.tower_settings import TowerSettings
from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_guidance.trainer import Plan, SampleOrder, fit, make_accelerator, parse_settings, save_settings
from clip_guidance.training_log import read_log
from clip_guidance.zero_shot import DEFAULT_TEMPLATES

CHOOSES = {  # what --best_by may name, and the setting that has it measured
    **dict.fromkeys(("R@1", "R@5"), "validation"),
    **dict.fromkeys(("zero_shot_top1", "zero_shot_mean_per_class_recall"), "zero_shot_data"),
    **{f"retrieval_{asked}_R@{k}": "retrieval_data" for asked in ("text", "image") for k in KS},
}
FIGURES = re.compile(r"(R@|zero_shot_|retrieval_).*(?<!_low)(?<!_high)$")  # shares of the log for the model card


@dataclass(frozen=True, kw_only=True)
class Settings(TowerSettings):
    """Settings of one run; the defaults are a small CLIP for 64x64 pictures."""

    data: list[str]  # captioned pictures: tables, folders, tars, data sets of the Hub; see clip_guidance.reading
    output: str  # folder for checkpoints, the log and the finished CLIP
    validation: str | None = None  # held-out pictures, read as the data is
    exclude: str | None = None  # leave out pictures whose name contains this
    init: str | None = None  # CLIP (folder or name) to go on from; its architecture and vocabulary hold
    init_text: str | None = None  # CLIP whose text tower and vocabulary to go on from, beside a new image tower
    init_image: str | None = None  # CLIP whose image tower to go on from, beside a new text tower
    freeze_text: bool = False  # the text encoder stays as it is (its projection learns): a UNet that reads it goes on
    freeze_image: bool = False  # the image half stays as it is: every picture is embedded once, before training (LiT)
    lora_rank: int = 0  # above 0: train adapters of that rank, the projections and the temperature, nothing else
    mirror: bool = False  # half of the pictures that show the same when mirrored are
    grey: float = 0.0  # share of the pictures that lose their colours
    holes: float = 0.0  # share of the pictures with a white hole
    noise: float = 0.0  # largest standard deviation of the noise on half of the pictures, which are in [0, 1]
    patch_dropout: float = 0.0  # share of the ViT's patches that a step leaves out, and about that share of its cost
    loss: str = "softmax"  # CLIP's, or "sigmoid", SigLIP's
    positives: str = "own"  # of softmax: pairs of one caption are left out of each other's, or "all" of them are right
    freeze_batch_norm: bool = False  # needed for chunks or several processes where a tower has BatchNorm
    steps: int = 1000
    batch_size: int = 128  # pairs a process and step
    chunk_size: int | None = None  # pairs that go through the towers at a time; changes memory and time alone
    gradient_checkpointing: bool = False  # transformer blocks run twice and keep less; changes memory and time alone
    compile: bool = False  # torch.compile of the towers
    ema_decay: float = 0.0  # above 0 the saved CLIP is the average of the weights
    learning_rate: float = 1e-3
    layer_decay: float = 1.0  # below 1 each block learns at this times the rate of the block behind it
    weight_decay: float = 0.1
    warmup: float = 100  # steps, or below 1 the share of all steps
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 200
    zero_shot_data: str | None = None  # pictures and their classes: a folder a class, or a table, see zero_shot_label
    zero_shot_label: str | None = None  # its column of classes; by default the first with a customary name
    zero_shot_templates: list[str] = field(default_factory=list)  # "a photo of a {}", ...
    zero_shot_every: int = 200
    retrieval_data: str | None = None  # captioned pictures among which captions and pictures look for each other
    retrieval_every: int = 200
    keep_best: bool = False  # also save, in output/best, the CLIP whose best_by was highest
    best_by: str = "R@1"  # of the held-out pictures; or zero_shot_top1, retrieval_text_R@1, ... as the log has it
    report_to: list[str] = field(default_factory=list)  # accelerate's trackers: tensorboard, wandb, ...


def find_tokenizer(settings: Settings, data: CaptionedPictures) -> CLIPTokenizer:
    """The vocabulary of this run: learnt and saved by its first launch, read by those that resume it."""
    if not (Path(settings.output) / "tokenizer.json").is_file():
        rng = random.Random(settings.seed)
        texts = [caption(row, rng) for row in data.rows for _ in range(4)]
        train_tokenizer(texts, settings.vocab_size, settings.context_length).save_pretrained(settings.output)
    return CLIPTokenizer.from_pretrained(settings.output)


def make_clip(settings: Settings, data: CaptionedPictures) -> CLIP:
    """Two fresh towers over the vocabulary of the captions of ``data``, or those that the settings go on from."""
    if settings.init:
        return CLIP.from_pretrained(settings.init).float()
    if settings.init_text:
        known = CLIP.from_pretrained(settings.init_text).float()
        config = CLIPConfig(**{**known.config.to_dict(), "vision_config": settings.image_config()})
        clip = CLIP(config, known.tokenizer)
        clip.text_encoder, clip.text_projection = known.text_encoder, known.text_projection
        return clip
    tokenizer = find_tokenizer(settings, data)
    if settings.init_image:
        known = CLIP.from_pretrained(settings.init_image).float()
        config = CLIPConfig(**{**known.config.to_dict(), "text_config": settings.text_config(tokenizer)})
        clip = CLIP(config, tokenizer, known.image_processor)
        clip.image_encoder, clip.visual_projection = known.image_encoder, known.visual_projection
        return clip
    config = CLIPConfig(
        text_config=settings.text_config(tokenizer),
        vision_config=settings.image_config(),
        projection_dim=settings.projection_dim,
    )
    return CLIP(config, tokenizer)


def trimmed(input_ids: Tensor, pad_token_id: int) -> Tensor:
    """Without the columns that are padding in every row: neither text tower looks at padding, so nothing changes."""
    return input_ids[:, : int((input_ids != pad_token_id).sum(1).max())]


def views(pictures: Tensor, settings: Settings) -> Tensor:
    """Random views of (B, 3, H, W) in [0, 1], which they leave for noise alone."""
    pictures = random_views(pictures)
    if settings.grey:
        pictures = random_grey(pictures, settings.grey)
    if settings.holes:
        pictures = random_holes(pictures, settings.holes)
    return random_noise(pictures, sigma=settings.noise) if settings.noise else pictures


@dataclass(frozen=True)
class Batch:
    """This process's pairs of one step; what is drawn depends on (seed, step, place in the global batch) alone."""

    indices: list[int]
    captions: list[str]
    mirrored: list[bool]

    @classmethod
    def draw(cls, data: CaptionedPictures, order: SampleOrder, step: int, settings: Settings) -> Batch:
        indices = order(step).tolist()
        draws = [random.Random(f"{settings.seed}-{step}-{order.first + i}") for i in range(len(indices))]
        captions = [caption(data.rows[i], rng) for i, rng in zip(indices, draws, strict=True)]
        sided = [settings.mirror and data.rows[i].mirrors for i in indices]
        return cls(indices, captions, [may and rng.random() < 0.5 for may, rng in zip(sided, draws, strict=True)])

    def pictures(self, data: CaptionedPictures) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        chosen, mirrored = data.pictures[self.indices].float() / 255, torch.tensor(self.mirrored)
        return torch.where(mirrored[:, None, None, None], chosen.flip(-1), chosen)


Examination = tuple[int, Callable[[CLIP], dict[str, float]]]  # every how many steps, and what it finds


def load_examinations(settings: Settings) -> list[Examination]:
    """What is measured on the way, its pictures read."""
    found: list[Examination] = []
    if settings.validation:
        held_out = CaptionedPictures.load(settings.validation, settings.image_size, settings.exclude)
        found.append((settings.evaluate_every, partial(name_recall, data=held_out)))
    if settings.zero_shot_data:
        columns = [settings.zero_shot_label] if settings.zero_shot_label else []
        classes = CaptionedPictures.from_pairs(settings.zero_shot_data, settings.image_size, caption_columns=columns)
        figures = partial(zero_shot_figures, data=classes, templates=settings.zero_shot_templates or DEFAULT_TEMPLATES)
        found.append((settings.zero_shot_every, figures))
    if settings.retrieval_data:
        captioned = CaptionedPictures.load(settings.retrieval_data, settings.image_size)
        found.append((settings.retrieval_every, partial(retrieval_figures, data=captioned)))
    return found


def prepare_towers(clip: CLIP, settings: Settings) -> Any:
    """Freezes, adapts and changes the towers as the settings say; returns peft's settings of the adapters, if any."""
    clip.text_encoder.requires_grad_(not settings.freeze_text)
    for part in (clip.image_encoder, clip.visual_projection):
        part.requires_grad_(not settings.freeze_image)
    adapters = add_lora(clip, settings.lora_rank) if settings.lora_rank else None
    if settings.patch_dropout:
        set_patch_dropout(clip, settings.patch_dropout)
    if settings.gradient_checkpointing:
        checkpoint_blocks(clip)
    if settings.compile:
        compile_towers(clip)
    return adapters


def train(settings: Settings, accelerator: Accelerator) -> None:
    """Trains on every pair of pictures and captions, and saves the CLIP in ``output``."""
    folder, size = Path(settings.output), settings.image_size
    data = CaptionedPictures.join([CaptionedPictures.load(path, size, settings.exclude) for path in settings.data])
    examinations = load_examinations(settings)
    accelerator.print(f"{len(data)} pictures, {len(data.skipped)} left out")
    for row, reason in data.skipped:
        accelerator.print(f"  row {row}: {reason}")
    torch.manual_seed(settings.seed)
    embeds = None
    with accelerator.main_process_first():  # which learns the vocabulary and embeds the pictures
        clip = make_clip(settings, data).to(accelerator.device, memory_format=torch.channels_last)
        if settings.freeze_image:
            embeds = cached_image_embeds(clip, data.pictures, folder / "image-embeds.safetensors")
    adapters = prepare_towers(clip, settings)
    objective = ContrastiveObjective(
        clip.train(),
        chunk_size=settings.chunk_size,
        loss=settings.loss,
        positives=settings.positives,
        views=lambda pictures: clip.image_processor.differentiable(views(pictures, settings)),
        cached_images=settings.freeze_image,
        freeze_batch_norm=settings.freeze_batch_norm,
    ).to(accelerator.device)
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)
    average = get_ema_multi_avg_fn(settings.ema_decay)
    ema = AveragedModel(objective, multi_avg_fn=average) if settings.ema_decay else None
    trained = objective if ema is None else ema.module

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = Batch.draw(data, order, step, settings)
        pictures = batch.pictures(data) if embeds is None else embeds[batch.indices]
        input_ids = trimmed(tokenize(clip.tokenizer, batch.captions), clip.tokenizer.pad_token_id)
        inputs = (pictures, input_ids, caption_groups(batch.captions))
        seed = settings.seed * 1_000_003 + step
        value = model(*(part.to(accelerator.device) for part in inputs), seed=seed)
        return {"loss": value, "scale": clip.logit_scale.detach().exp()}

    def after_step(done: int) -> dict[str, float]:
        clip.clamp_logit_scale()
        found: dict[str, float] = {}
        for every, figures in examinations:
            if done % every == 0 or done == settings.steps:
                with evaluating(trained) as model:
                    found |= figures(model)
        return found

    def describe(step: int) -> dict[str, Any]:
        return asdict(Batch.draw(data, order, step, settings))

    plan = make_plan(settings, order.global_batch_size)
    fit(accelerator, objective, loss, plan, folder, phase="clip", ema=ema, after_step=after_step, describe=describe)
    state = full_state_dict(trained.clip)
    if accelerator.is_main_process:
        save(clip.eval(), state, folder, adapters)
        if settings.keep_best:
            best = load_file(folder / "checkpoints" / BEST)
            state = {key.removeprefix("model/clip."): value for key, value in best.items() if "/clip." in key}
            save(clip, state, folder / "best", adapters)
        log = folder / "log.jsonl"
        last = read_log(log)[-1] if log.is_file() else {}
        figures = {name: value for name, value in last.items() if FIGURES.match(name)}
        write_model_card(folder, CLIP.from_pretrained(folder), settings=asdict(settings), figures=figures)


def save(clip: CLIP, state: dict[str, Tensor], folder: Path, adapters: Any = None) -> None:
    """Writes the CLIP of this state; one with adapters as a CLIP without, and its adapter beside it."""
    if adapters is not None:
        save_adapter(state, adapters, folder / "adapter")
        state = merged(state)
    clip.save_pretrained(folder, state_dict=state)


def make_plan(settings: Settings, batch_size: int) -> Plan:
    shared = ("steps", "learning_rate", "warmup", "weight_decay", "layer_decay", "max_grad_norm", "seed")
    options = {name: getattr(settings, name) for name in (*shared, "log_every", "save_every")}
    return Plan(**options, batch_size=batch_size, best=settings.best_by if settings.keep_best else None)


def check(settings: Settings) -> None:
    """Ends the program where settings contradict each other."""
    for name, known in (("image_tower", IMAGE_TOWERS), ("text_tower", TEXT_TOWERS)):
        if getattr(settings, name) not in known:
            raise SystemExit(f"--{name}: expected one of {', '.join(known)}, got {getattr(settings, name)!r}")
    given = [f"--{name}" for name in ("init", "init_text", "init_image") if getattr(settings, name)]
    if len(given) > 1:
        raise SystemExit(f"expected one CLIP to go on from, got {', '.join(given)}")
    if settings.keep_best:
        check_best(settings)
    if settings.freeze_image and not (settings.init or settings.init_image):
        raise SystemExit("--freeze_image: needs --init or --init_image, the CLIP whose image tower is locked")
    altering = [
        f"--{name}" for name in ("mirror", "grey", "holes", "noise", "patch_dropout") if getattr(settings, name)
    ]
    if settings.freeze_image and altering:
        raise SystemExit(f"--freeze_image: pictures are embedded once, as they are, without {', '.join(altering)}")
    if settings.lora_rank and (not settings.init or settings.freeze_text or settings.freeze_image):
        raise SystemExit("--lora_rank: needs --init, the CLIP that is adapted, and neither of its towers frozen")


def check_best(settings: Settings) -> None:
    """Ends the program where nothing would be measured by the name that chooses."""
    if settings.best_by not in CHOOSES:
        raise SystemExit(f"--best_by: expected one of {', '.join(CHOOSES)}, got {settings.best_by!r}")
    if not getattr(settings, needed := CHOOSES[settings.best_by]):
        raise SystemExit(f"--keep_best: needs --{needed}, the pictures that choose by {settings.best_by}")


def main(settings: Settings) -> None:
    check(settings)
    try:
        accelerator = make_accelerator(settings.report_to, settings.output, settings)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    save_settings(settings, Path(settings.output) / "settings.json")
    train(settings, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_settings(Settings))
