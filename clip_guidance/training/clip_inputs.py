"""What a CLIP is trained on, what it starts as, and what it is measured on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

from accelerate import Accelerator

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.data import Policy, open_pairs
from clip_guidance.data.dataset import CaptionedImages, caption
from clip_guidance.training.batches import MemoryBatches, StreamedBatches, ToSquare
from clip_guidance.training.clip_settings import Settings
from clip_guidance.training.concept_metrics import concept_metrics
from clip_guidance.training.evaluation import name_recall, retrieval_metrics, zero_shot_metrics
from clip_guidance.training.order import SampleOrder
from clip_guidance.training.vocabulary import find_tokenizer
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
    concepts = [row.name for row in data.rows]
    order = SampleOrder(len(data), settings.batch_size, seed, accelerator, concepts, settings.images_per_concept)
    return MemoryBatches(
        data,
        order,
        seed,
        settings.random_flip,
        keyword_share=settings.keyword_share,
        composite_share=settings.composite_share,
    )


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
        return cast(CLIP, CLIP.from_pretrained(settings.init).float())
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


def load_evaluations(settings: Settings) -> list[Evaluation]:
    """Read the images that the CLIP is measured on during training."""
    found: list[Evaluation] = []
    if settings.validation:
        exclude = settings.exclude_captions_containing
        held_out = CaptionedImages.load(settings.validation, settings.image_size, exclude)
        found.append((settings.evaluate_every, partial(name_recall, data=held_out)))
        if settings.keyword_share or settings.composite_share:
            found.append((settings.evaluate_every, partial(concept_metrics, data=held_out)))
    if settings.zero_shot_data:
        columns = [settings.zero_shot_label_column] if settings.zero_shot_label_column else []
        classes = CaptionedImages.from_pairs(settings.zero_shot_data, settings.image_size, caption_columns=columns)
        metrics = partial(zero_shot_metrics, data=classes, templates=settings.zero_shot_templates or DEFAULT_TEMPLATES)
        found.append((settings.zero_shot_every, metrics))
    if settings.retrieval_data:
        captioned = CaptionedImages.load(settings.retrieval_data, settings.image_size)
        found.append((settings.retrieval_every, partial(retrieval_metrics, data=captioned)))
    return found
