"""Train a CLIP on captioned images, from scratch or from another CLIP.

    accelerate launch training/train_clip.py --config training/recipes/emoji-clip.yaml

Any image tower works with any text tower (``--image_tower vit|resnet --text_tower transformer|cbow``). The vocabulary
is learnt from the captions. During training, R@1 and R@5 of the held-out images among all their names are logged; the
finished CLIP is saved in ``output`` and loads with ``CLIP.from_pretrained(output)``. With ``--lora_rank`` the adapter
is also saved by itself, in ``output/adapter``. Images are held in memory; with ``--streaming True`` they are read
during training, from data of any size.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.lora import add_lora, merge_adapters, save_adapter
from clip_guidance.clip.model_card import Figure, write_model_card
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.data import Policy, open_pairs
from clip_guidance.data.dataset import CaptionedImages, caption
from clip_guidance.metrics.retrieval import unique
from clip_guidance.training.augment import random_erasing, random_grayscale, random_noise, random_views
from clip_guidance.training.batches import Batch, MemoryBatches, Prefetcher, SampleOrder, StreamedBatches, ToSquare
from clip_guidance.training.checkpoints import BEST, full_state_dict
from clip_guidance.training.class_name_loss import ClassNameLoss
from clip_guidance.training.clip_settings import Settings, check_settings
from clip_guidance.training.efficiency import checkpoint_blocks, compile_towers, set_patch_dropout
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.evaluation import at_chance, evaluating, name_recall, retrieval_metrics, zero_shot_metrics
from clip_guidance.training.frozen_embeds import cached_image_embeds
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.log import read_log
from clip_guidance.training.objective import ContrastiveObjective, caption_groups
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import parse_settings, save_settings
from clip_guidance.training.trainer import Plan, fit
from clip_guidance.training.vocabulary import check_captions, find_tokenizer
from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES

Evaluation = tuple[int, partial[dict[str, float]]]  # steps from one to the next, and what is measured of a CLIP


def load_batches(settings: Settings, accelerator: Accelerator) -> MemoryBatches | StreamedBatches:
    """Read the data into memory, or open it to be read during training."""
    size, seed = settings.image_size, settings.seed
    if settings.streaming:
        pairs = open_pairs(
            settings.data,
            seed=seed,
            shuffle_buffer=settings.shuffle_buffer,
            shard=(accelerator.process_index, accelerator.num_processes),
            workers=settings.workers,
            ahead=settings.batch_size,
            policy=Policy(max_bad_share=settings.max_bad_share),
            transform=ToSquare(size),
            exclude=settings.exclude_captions_containing,
            quarantine=Path(settings.output) / "quarantine.jsonl",
        )
        accelerator.print(f"{pairs.source.name}: {pairs.source.kind}, read as training goes")
        return StreamedBatches(pairs, settings.batch_size, seed, accelerator, settings.random_flip)
    exclude = settings.exclude_captions_containing
    data = CaptionedImages.join([CaptionedImages.load(path, size, exclude) for path in settings.data])
    accelerator.print(f"{len(data)} images, {len(data.skipped)} left out")
    for row, reason in data.skipped:
        accelerator.print(f"  row {row}: {reason}")
    order = SampleOrder(len(data), settings.batch_size, seed, accelerator)
    return MemoryBatches(data, order, seed, settings.random_flip)


def captions(settings: Settings, batches: MemoryBatches | StreamedBatches, rows: int | None) -> Iterator[str]:
    """Yield captions of the data; of a stream those of the first ``rows`` rows."""
    if isinstance(batches, StreamedBatches):
        exclude = settings.exclude_captions_containing
        pairs = open_pairs(
            settings.data, seed=settings.seed, shuffle_buffer=settings.shuffle_buffer, exclude=exclude
        )
        return itertools.chain.from_iterable(pairs.captions(rows))
    rng = random.Random(settings.seed)
    return (caption(row, rng) for row in batches.data.rows for _ in range(4))


def make_clip(settings: Settings, batches: MemoryBatches | StreamedBatches) -> CLIP:
    """Make two fresh towers over the vocabulary of the captions, or load those to continue from."""
    if settings.init:
        return CLIP.from_pretrained(settings.init).float()
    if settings.init_text:
        known = CLIP.from_pretrained(settings.init_text).float()
        config = CLIPConfig(**{**known.config.to_dict(), "vision_config": settings.image_config()})
        clip = CLIP(config, known.tokenizer)
        clip.text_encoder, clip.text_projection = known.text_encoder, known.text_projection
        return clip
    texts = captions(settings, batches, settings.vocabulary_rows)
    tokenizer = find_tokenizer(settings.output, texts, settings.vocab_size, settings.context_length)
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
    """Drop columns that are padding in every row, which no text tower reads."""
    return input_ids[:, : int((input_ids != pad_token_id).sum(1).max())]


def augment(images: Tensor, settings: Settings) -> Tensor:
    """Augment (B, 3, H, W) in [0, 1] at random; only noise leaves that range."""
    images = random_views(images)
    if settings.grayscale_probability:
        images = random_grayscale(images, settings.grayscale_probability)
    if settings.erasing_probability:
        images = random_erasing(images, settings.erasing_probability)
    return random_noise(images, settings.max_noise_std) if settings.max_noise_std else images


def load_evaluations(settings: Settings) -> list[Evaluation]:
    """Read the images that the CLIP is measured on during training."""
    found: list[Evaluation] = []
    if settings.validation:
        exclude = settings.exclude_captions_containing
        held_out = CaptionedImages.load(settings.validation, settings.image_size, exclude)
        found.append((settings.evaluate_every, partial(name_recall, data=held_out)))
    if settings.zero_shot_data:
        columns = [settings.zero_shot_label_column] if settings.zero_shot_label_column else []
        classes = CaptionedImages.from_pairs(settings.zero_shot_data, settings.image_size, caption_columns=columns)
        metrics = partial(zero_shot_metrics, data=classes, templates=settings.zero_shot_templates or DEFAULT_TEMPLATES)
        found.append((settings.zero_shot_every, metrics))
    if settings.retrieval_data:
        captioned = CaptionedImages.load(settings.retrieval_data, settings.image_size)
        found.append((settings.retrieval_every, partial(retrieval_metrics, data=captioned)))
    return found


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
    settings: Settings, clip: CLIP, names: list[str], whole: Collection[str] = ()
) -> ContrastiveObjective:
    """Make the loss of a CLIP whose towers are prepared; ``names`` are all those of the data, some whole captions."""
    weight = settings.class_name_loss_weight
    return ContrastiveObjective(
        clip.train(),
        chunk_size=settings.chunk_size,
        loss=settings.loss,
        positives=settings.positives,
        augment=lambda images: augment(images, settings),
        pixel_values=clip.image_processor.differentiable,
        cached_images=settings.freeze_image,
        class_name_loss=ClassNameLoss(clip, names, captions=whole) if weight else None,
        class_name_loss_weight=weight,
        freeze_batch_norm=settings.freeze_batch_norm,
    )


def train(settings: Settings, accelerator: Accelerator, batches: MemoryBatches | StreamedBatches) -> None:
    """Train on every pair of images and captions, and save the CLIP in ``output``."""
    check_captions(captions(settings, batches, None), ", ".join(settings.data))
    folder, evaluations = Path(settings.output), load_evaluations(settings)
    torch.manual_seed(settings.seed)
    with accelerator.main_process_first():  # which learns the vocabulary and embeds the images
        clip = make_clip(settings, batches).to(accelerator.device, memory_format=torch.channels_last)
        if settings.freeze_image:
            batches.embeds = cached_image_embeds(clip, batches.data.images, folder / "image-embeds.safetensors")
    adapters = prepare_towers(clip, settings)
    classify = settings.class_name_loss_weight > 0
    rows = batches.data.rows if classify else []
    names, name_indices = unique([row.name for row in rows])
    objective = make_objective(settings, clip, names, {row.name for row in rows if row.captions})
    objective = objective.to(accelerator.device)
    ema_model = make_ema_model(objective, settings.ema_decay) if settings.ema_decay else None
    trained = objective if ema_model is None else ema_model.module
    stream = batches if settings.streaming else None

    def draw(step: int) -> tuple[Batch, Tensor]:
        batch = batches(step)
        return batch, trimmed(tokenize(clip.tokenizer, batch.captions), clip.tokenizer.pad_token_id)

    drawn = draw if settings.streaming else Prefetcher(draw)  # a stream reads ahead by itself, and saves its position

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch, input_ids = drawn(step)
        inputs = [batch.images, input_ids, caption_groups(batch.captions)]
        if classify:
            inputs.append(name_indices[batch.described["indices"]])
        seed = settings.seed * 1_000_003 + step
        value = model(*(part.to(accelerator.device) for part in inputs), seed=seed)
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
    options = {"after_step": after_step, "describe": batches.describe, "stream": stream}
    fit(accelerator, objective, loss, plan, folder, phase="clip", ema_model=ema_model, **options)
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
    sets = {name_recall: "validation", zero_shot_metrics: "zero_shot_data", retrieval_metrics: "retrieval_data"}
    figures: dict[str, Figure] = {}
    for _, measure in evaluations:
        of = Path(getattr(settings, sets[measure.func])).name
        for name, (count, chance) in at_chance(measure.func, measure.keywords["data"]).items():
            if name in last:
                figures[name] = Figure(last[name], count, chance, of)
    write_model_card(folder, CLIP.from_pretrained(folder), settings=asdict(settings), figures=figures)


def save_clip(clip: CLIP, state: dict[str, Tensor], folder: Path, adapters: Any = None) -> None:
    """Write the CLIP of this state; adapters are merged into it and saved beside it."""
    if adapters is not None:
        save_adapter(state, adapters, folder / "adapter")
        state = merge_adapters(state)
    clip.save_pretrained(folder, state_dict=state)


def make_plan(settings: Settings, batch_size: int) -> Plan:
    shared = ("steps", "learning_rate", "warmup", "weight_decay", "layer_decay", "max_grad_norm", "seed")
    options = {name: getattr(settings, name) for name in (*shared, "log_every", "save_every")}
    return Plan(**options, batch_size=batch_size, best_metric=settings.best_metric if settings.keep_best else None)


def main(settings: Settings) -> None:
    check_settings(settings)
    try:
        accelerator = make_accelerator(settings.report_to, settings.output, settings)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    with errors_as_sentences(), locked_output(settings.output, accelerator):
        save_settings(settings, Path(settings.output) / "settings.json")
        with contextlib.closing(load_batches(settings, accelerator)) as batches:
            train(settings, accelerator, batches)
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_settings(Settings))
