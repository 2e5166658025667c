"""Train a CLIP on captioned images, from scratch or from another CLIP: ``clip-guidance train clip``.

Any image tower works with any text tower (``--image_tower vit|resnet --text_tower transformer|cbow``). The vocabulary
is learnt from the captions. During training, R@1 and R@5 of the held-out images among all their names are logged; the
finished CLIP is saved in ``output`` and loads with ``CLIP.from_pretrained(output)``. With ``--lora_rank`` the adapter
is also saved by itself, in ``output/adapter``. Images are held in memory; with ``--streaming True`` they are read
during training, from data of any size.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from clip_guidance.clip import CLIP
from clip_guidance.clip.lora import add_lora, merge_adapters, save_adapter
from clip_guidance.clip.model_card import Figure, write_model_card
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.metrics.retrieval import unique
from clip_guidance.training.augment import random_erasing, random_grayscale, random_noise, random_views
from clip_guidance.training.batches import Batch, MemoryBatches, Prefetcher, StreamedBatches
from clip_guidance.training.checkpoints import BEST, full_state_dict
from clip_guidance.training.class_name_loss import NAMELESS, ClassNameLoss
from clip_guidance.training.clip_inputs import Evaluation, captions, load_batches, load_evaluations, make_clip
from clip_guidance.training.clip_settings import Settings, check_settings
from clip_guidance.training.concept_metrics import concept_metrics
from clip_guidance.training.distillation import Teachers
from clip_guidance.training.efficiency import checkpoint_blocks, compile_towers, set_patch_dropout
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.evaluation import at_chance, evaluating, name_recall, retrieval_metrics, zero_shot_metrics
from clip_guidance.training.frozen_embeds import cached_image_embeds
from clip_guidance.training.launch import check_agreement, make_accelerator
from clip_guidance.training.log import read_log
from clip_guidance.training.objective import ContrastiveObjective, caption_groups
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import save_settings
from clip_guidance.training.text_anchor import TextAnchor
from clip_guidance.training.trainer import Plan, fit
from clip_guidance.training.vocabulary import check_captions


def trimmed(input_ids: Tensor, pad_token_id: int) -> Tensor:
    """Drop columns that are padding in every row, which no text tower reads."""
    return input_ids[:, : int((input_ids != pad_token_id).sum(1).max())]


def digest(described: Any) -> str:
    """Return 16 digits that tell two descriptions apart."""
    return hashlib.blake2b(repr(described).encode(), digest_size=8).hexdigest()


def augment(images: Tensor, settings: Settings) -> Tensor:
    """Augment (B, 3, H, W) in [0, 1] at random; only noise leaves that range."""
    images = random_views(images)
    if settings.grayscale_probability:
        images = random_grayscale(images, settings.grayscale_probability)
    if settings.erasing_probability:
        images = random_erasing(images, settings.erasing_probability)
    return random_noise(images, settings.max_noise_std) if settings.max_noise_std else images


def prepare_towers(clip: CLIP, settings: Settings) -> Any:
    """Freeze, adapt and change the towers, and return peft's config of the adapters, if any."""
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


def make_objective(
    settings: Settings,
    clip: CLIP,
    names: list[str],
    whole: Collection[str] = (),
    teachers: Teachers | None = None,
    text_anchor: TextAnchor | None = None,
) -> ContrastiveObjective:
    """Make the loss of a CLIP whose towers are prepared; ``names`` are all those of the data, some whole captions."""
    weight = settings.class_name_loss_weight
    return ContrastiveObjective(
        clip.train(),
        chunk_size=settings.chunk_size,
        loss=settings.loss,
        positives="all" if settings.positives == "concept" else settings.positives,
        augment=lambda images: augment(images, settings),
        pixel_values=clip.image_processor.differentiable,
        cached_images=settings.freeze_image,
        class_name_loss=ClassNameLoss(clip, names, captions=whole) if weight else None,
        class_name_loss_weight=weight,
        image_positives_weight=settings.image_positives_weight,
        teachers=teachers,
        distillation_weight=settings.distillation_weight,
        text_anchor=text_anchor,
        text_anchor_weight=settings.text_anchor_weight,
        freeze_batch_norm=settings.freeze_batch_norm,
    )


def agreed_clip(settings: Settings, accelerator: Accelerator, batches: MemoryBatches | StreamedBatches) -> CLIP:
    """Make or load the CLIP, with the embeddings of images where they are frozen; all processes have the same."""
    with accelerator.main_process_first():  # which learns the vocabulary and embeds the images
        clip = make_clip(settings, batches)
        clip = clip.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.freeze_image and isinstance(batches, MemoryBatches):
            file = Path(settings.output) / "image-embeds.safetensors"
            batches.embeds = cached_image_embeds(clip, batches.data.images, file)
    described = batches.data.rows if isinstance(batches, MemoryBatches) else None
    check_agreement(settings, vocabulary=digest(sorted(clip.tokenizer.get_vocab().items())), data=digest(described))
    return clip


def load_teachers(settings: Settings, device: torch.device) -> Teachers | None:
    """Load the CLIPs whose ranking is learnt; None without any."""
    clips = [CLIP.from_pretrained(name).float() for name in settings.teachers]
    return Teachers(clips, device) if clips else None


def train(settings: Settings, accelerator: Accelerator, batches: MemoryBatches | StreamedBatches) -> None:
    """Train on every pair of images and captions, and save the CLIP in ``output``."""
    check_captions(captions(settings, batches, None), ", ".join(settings.data))
    evaluations = load_evaluations(settings)
    torch.manual_seed(settings.seed)
    clip = agreed_clip(settings, accelerator, batches)
    save_settings(settings, Path(settings.output) / "settings.json")
    adapters = prepare_towers(clip, settings)
    classify = settings.class_name_loss_weight > 0
    rows = batches.data.rows if classify and isinstance(batches, MemoryBatches) else []
    names, name_indices = unique([row.name for row in rows])
    teachers = load_teachers(settings, accelerator.device)
    anchor = TextAnchor(CLIP.from_pretrained(settings.text_anchor), clip) if settings.text_anchor else None
    objective = make_objective(settings, clip, names, {row.name for row in rows if row.captions}, teachers, anchor)
    objective = objective.to(accelerator.device)
    ema_model = make_ema_model(objective, settings.ema_decay) if settings.ema_decay else None
    trained = objective if ema_model is None else cast(ContrastiveObjective, ema_model.module)
    stream = batches if isinstance(batches, StreamedBatches) else None

    def draw(step: int) -> tuple[Batch, dict[str, Tensor]]:
        batch = batches(step)
        texts = {"input_ids": trimmed(tokenize(clip.tokenizer, batch.captions), clip.tokenizer.pad_token_id)}
        if anchor is not None and isinstance(batches, MemoryBatches):
            shown = [batches.data.rows[i] for i in batch.described["indices"]]
            texts["anchor_ids"] = anchor.draw(shown, f"{settings.seed}-{step}-{accelerator.process_index}")
        return batch, texts

    drawn = Prefetcher(draw) if stream is None else draw  # a stream reads ahead by itself, and saves its position

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch, texts = drawn(step)
        inputs = {"images": batch.images, **texts}
        inputs["groups"] = caption_groups(batch.names if settings.positives == "concept" else batch.captions)
        if classify:
            inputs["name_indices"] = name_indices[batch.described["indices"]]
            inputs["name_indices"][list(batch.described["partners"])] = NAMELESS
        if teachers is not None:
            inputs["teacher_texts"] = teachers.text_embeds(batch.captions)
        inputs = {name: part.to(accelerator.device) for name, part in inputs.items()}
        value = model(**inputs, seed=settings.seed * 1_000_003 + step)
        values = {"loss": value, "scale": clip.logit_scale.detach().exp()}
        return values | ({} if stream is None else {"bad_share": torch.tensor(stream.pairs.counters.bad_share)})

    def after_step(done: int) -> dict[str, float]:
        clip.clamp_logit_scale()
        found: dict[str, float] = {}
        for every, measure in evaluations:
            if done % every == 0 or done == settings.steps:
                with evaluating(trained) as model:
                    found |= measure(model)
        return found

    plan = make_plan(settings, batches.global_batch_size)
    fit(
        accelerator, objective, loss, plan, Path(settings.output), phase="clip", ema_model=ema_model,
        after_step=after_step, describe=batches.describe, stream=stream,
    )  # fmt: skip
    state = full_state_dict(trained.clip)
    if accelerator.is_main_process:
        save_results(settings, clip.eval(), state, evaluations, adapters)


def save_results(
    settings: Settings, clip: CLIP, state: dict[str, Tensor], evaluations: Sequence[Evaluation], adapters: Any = None
) -> None:
    """Write the CLIP of this state, the best one if it was kept, and the model card."""
    folder = Path(settings.output)
    save_clip(clip, state, folder, adapters)
    if settings.keep_best:
        best = load_file(folder / "checkpoints" / BEST)
        state = {key.removeprefix("model/clip."): value for key, value in best.items() if "/clip." in key}
        save_clip(clip, state, folder / "best", adapters)
    log = folder / "log.jsonl"
    last = read_log(log)[-1] if log.is_file() else {}
    sets = {
        name_recall: "validation",
        concept_metrics: "validation",
        zero_shot_metrics: "zero_shot_data",
        retrieval_metrics: "retrieval_data",
    }
    figures: dict[str, Figure] = {}
    for _, measure in evaluations:
        of = Path(getattr(settings, sets[measure.func])).name
        for name, (count, chance) in at_chance(measure.func, measure.keywords["data"]).items():
            if name in last:
                figures[name] = Figure(last[name], count, chance, of)
    write_model_card(folder, cast(CLIP, CLIP.from_pretrained(folder)), settings=asdict(settings), figures=figures)


def save_clip(clip: CLIP, state: dict[str, Tensor], folder: Path, adapters: Any = None) -> None:
    """Write the CLIP of this state; adapters are merged into it and saved beside it."""
    if adapters is not None:
        save_adapter(state, adapters, folder / "adapter")
        state = merge_adapters(state)
    clip.save_pretrained(folder, state_dict=state)


def make_plan(settings: Settings, batch_size: int) -> Plan:
    """Make the plan of the loop from the settings and the size of the batch of all processes."""
    shared = ("steps", "learning_rate", "warmup", "weight_decay", "layer_decay", "max_grad_norm", "seed")
    options = {name: getattr(settings, name) for name in (*shared, "log_every", "save_every")}
    return Plan(**options, batch_size=batch_size, best_metric=settings.best_metric if settings.keep_best else None)


def main(settings: Settings) -> None:
    """Check the settings, train, and save the CLIP in ``output``.

    Raises:
        SystemExit: The settings contradict each other, or the data, the output or the launch cannot be used; the
            message says so.
    """
    check_settings(settings)
    try:
        accelerator = make_accelerator(settings.report_to, settings.output, settings)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    with (
        errors_as_sentences(),
        locked_output(settings.output, accelerator),
        contextlib.closing(load_batches(settings, accelerator)) as batches,
    ):
        train(settings, accelerator, batches)
    accelerator.end_training()
