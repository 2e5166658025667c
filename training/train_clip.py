"""Trains a CLIP from scratch on captioned pictures with the symmetric contrastive objective.

    accelerate launch training/train_clip.py --config training/recipes/emoji-clip.yaml

Any image tower with any text tower (``--image_tower vit|resnet --text_tower transformer|cbow``). The vocabulary is
learnt from the captions. During training, R@1 and R@5 of the held-out pictures among all names they bear are logged;
the finished CLIP is saved in ``output`` and loads with ``CLIP.from_pretrained(output)``.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTokenizer, PreTrainedConfig

from clip_guidance.augment import random_grey, random_holes, random_noise, random_views
from clip_guidance.checkpoints import BEST, full_state_dict
from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.data import CaptionedPictures, caption
from clip_guidance.objective import ContrastiveObjective, caption_groups
from clip_guidance.retrieval import recall_at_k, unique
from clip_guidance.tokenizer import tokenize, train_tokenizer
from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_guidance.trainer import Plan, SampleOrder, fit, make_accelerator, parse_settings, save_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a small CLIP for 64x64 pictures."""

    data: list[str]  # captioned pictures: tables, folders, tars, data sets of the Hub; see clip_guidance.reading
    output: str  # folder for checkpoints, the log and the finished CLIP
    validation: str | None = None  # held-out pictures, read as the data is
    exclude: str | None = None  # leave out pictures whose name contains this
    init: str | None = None  # CLIP (folder or name) to go on from; its architecture and vocabulary hold
    init_text: str | None = None  # CLIP whose text tower and vocabulary to go on from, beside a new image tower
    image_tower: str = "vit"
    text_tower: str = "transformer"
    image_size: int = 64
    patch_size: int = 16
    stem_widths: list[int] = field(default_factory=list)  # of the ViT's residual stages; none: a linear patch embedding
    pooling: str = "class"  # of the ViT: the class token, or the "mean" of all tokens
    image_width: int = 192
    image_layers: int = 6
    resnet_widths: list[int] = field(default_factory=lambda: [32, 64, 128, 192])
    resnet_depths: list[int] = field(default_factory=lambda: [1, 1, 2, 2])
    text_width: int = 192
    text_layers: int = 3
    vocab_size: int = 3072
    context_length: int = 32
    projection_dim: int = 128
    freeze_text: bool = False  # the text encoder stays as it is (its projection learns): a UNet that reads it goes on
    mirror: bool = False  # half of the pictures that show the same when mirrored are
    grey: float = 0.0  # share of the pictures that lose their colours
    holes: float = 0.0  # share of the pictures with a white hole
    noise: float = 0.0  # largest standard deviation of the noise on half of the pictures, which are in [0, 1]
    loss: str = "softmax"  # CLIP's, or "sigmoid", SigLIP's
    positives: str = "own"  # of softmax: pairs of one caption are left out of each other's, or "all" of them are right
    freeze_batch_norm: bool = False  # needed for chunks or several processes where a tower has BatchNorm
    steps: int = 1000
    batch_size: int = 128  # pairs a process and step
    chunk_size: int | None = None  # pairs that go through the towers at a time; changes memory and time alone
    ema_decay: float = 0.0  # above 0 the saved CLIP is the average of the weights
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 100
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 200
    keep_best: bool = False  # also save, in output/best, the CLIP whose R@1 on the held-out pictures was highest


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
        config = CLIPConfig(**{**known.config.to_dict(), "vision_config": image_config(settings)})
        clip = CLIP(config, known.tokenizer)
        clip.text_encoder, clip.text_projection = known.text_encoder, known.text_projection
        return clip
    tokenizer = find_tokenizer(settings, data)
    config = CLIPConfig(
        text_config=text_config_for(settings, tokenizer),
        vision_config=image_config(settings),
        projection_dim=settings.projection_dim,
    )
    return CLIP(config, tokenizer)


def text_config_for(settings: Settings, tokenizer: CLIPTokenizer) -> PreTrainedConfig:
    """Of the text tower."""
    options = dict(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_width,
        intermediate_size=4 * settings.text_width,
        max_position_embeddings=settings.context_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if settings.text_tower == "transformer":
        options |= dict(num_hidden_layers=settings.text_layers, num_attention_heads=settings.text_width // 32)
    return TEXT_TOWERS[settings.text_tower][0](**options)


def image_config(settings: Settings) -> PreTrainedConfig:
    """Of the image tower."""
    if settings.image_tower == "vit":
        options = dict(
            hidden_size=settings.image_width,
            intermediate_size=4 * settings.image_width,
            num_hidden_layers=settings.image_layers,
            num_attention_heads=settings.image_width // 32,
            patch_size=settings.patch_size,
            stem_widths=settings.stem_widths or None,
            pooling=settings.pooling,
            hidden_act="gelu",
        )
    else:
        options = dict(hidden_sizes=settings.resnet_widths, depths=settings.resnet_depths)
    return IMAGE_TOWERS[settings.image_tower][0](image_size=settings.image_size, **options)


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


@torch.no_grad()
def evaluate(objective: ContrastiveObjective, data: CaptionedPictures) -> dict[str, float]:
    """R@k of the pictures among the distinct names they bear: a picture is the query, its name is right."""
    training, clip = objective.training, objective.eval().clip
    if isinstance(objective, FSDPModule):
        objective.unshard()  # what belongs to no layer is needed outside of forward
    names, targets = unique([row.name for row in data.rows])
    image_embeds = clip.encode_image(data.pictures, batch_size=256)
    text_embeds = clip.encode_text([f"a picture of a {name}" for name in names])
    if isinstance(objective, FSDPModule):
        objective.reshard()
    objective.train(training)
    return recall_at_k(image_embeds @ text_embeds.T, targets.to(image_embeds.device))


def train(settings: Settings, accelerator: Accelerator) -> None:
    """Trains on every pair of pictures and captions, and saves the CLIP in ``output``."""
    tables = [CaptionedPictures.load(path, settings.image_size, settings.exclude) for path in settings.data]
    data = CaptionedPictures.join(tables)
    held_out = settings.validation and CaptionedPictures.load(
        settings.validation, settings.image_size, settings.exclude
    )
    accelerator.print(f"{len(data)} pictures, {len(data.skipped)} left out")
    for row, reason in data.skipped:
        accelerator.print(f"  row {row}: {reason}")
    torch.manual_seed(settings.seed)
    with accelerator.main_process_first():  # which learns the vocabulary
        clip = make_clip(settings, data)
    clip.to(accelerator.device, memory_format=torch.channels_last)
    clip.text_encoder.requires_grad_(not settings.freeze_text)
    objective = ContrastiveObjective(
        clip.train(),
        chunk_size=settings.chunk_size,
        loss=settings.loss,
        positives=settings.positives,
        views=lambda pictures: clip.image_processor.differentiable(views(pictures, settings)),
        freeze_batch_norm=settings.freeze_batch_norm,
    ).to(accelerator.device)
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)
    average = get_ema_multi_avg_fn(settings.ema_decay)
    ema = AveragedModel(objective, multi_avg_fn=average) if settings.ema_decay else None
    trained = objective if ema is None else ema.module

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = Batch.draw(data, order, step, settings)
        input_ids = trimmed(tokenize(clip.tokenizer, batch.captions), clip.tokenizer.pad_token_id)
        inputs = (batch.pictures(data), input_ids, caption_groups(batch.captions))
        seed = settings.seed * 1_000_003 + step
        value = model(*(part.to(accelerator.device) for part in inputs), seed=seed)
        return {"loss": value, "scale": clip.logit_scale.detach().exp()}

    def after_step(done: int) -> dict[str, float]:
        clip.clamp_logit_scale()
        if not held_out or (done % settings.evaluate_every and done != settings.steps):
            return {}
        return evaluate(trained, held_out)

    def describe(step: int) -> dict[str, Any]:
        return asdict(Batch.draw(data, order, step, settings))

    folder, plan = Path(settings.output), make_plan(settings)
    fit(accelerator, objective, loss, plan, folder, phase="clip", ema=ema, after_step=after_step, describe=describe)
    state = full_state_dict(trained.clip)
    if accelerator.is_main_process:
        clip.eval().save_pretrained(folder, state_dict=state)
        if settings.keep_best:
            best = load_file(folder / "checkpoints" / BEST)
            state = {key.removeprefix("model/clip."): value for key, value in best.items() if "/clip." in key}
            clip.save_pretrained(folder / "best", state_dict=state)


def make_plan(settings: Settings) -> Plan:
    return Plan(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        log_every=settings.log_every,
        save_every=settings.save_every,
        best="R@1" if settings.keep_best else None,
    )


def main(settings: Settings) -> None:
    for name, known in (("image_tower", IMAGE_TOWERS), ("text_tower", TEXT_TOWERS)):
        if getattr(settings, name) not in known:
            raise SystemExit(f"--{name}: expected one of {', '.join(known)}, got {getattr(settings, name)!r}")
    if settings.keep_best and not settings.validation:
        raise SystemExit("--keep_best: needs --validation, the held-out pictures that choose")
    save_settings(settings, Path(settings.output) / "settings.json")
    train(settings, make_accelerator())


if __name__ == "__main__":
    main(parse_settings(Settings))
