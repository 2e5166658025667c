"""The settings of :mod:`.train_clip`, and which of them contradict each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_guidance.training.evaluation import KS
from clip_guidance.training.tower_settings import TowerSettings

NEEDED_DATA = {  # the values that --best_metric may name, each with the setting whose images it is measured on
    **dict.fromkeys(("R@1", "R@5"), "validation"),
    **dict.fromkeys(("zero_shot_top1", "zero_shot_mean_per_class_recall"), "zero_shot_data"),
    **{f"retrieval_{query}_R@{k}": "retrieval_data" for query in ("text", "image") for k in KS},
}
POSITIVES = ("own", "all", "concept")
AUGMENTATIONS = (
    "random_flip", "grayscale_probability", "erasing_probability", "max_noise_std", "patch_dropout", "composite_share",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(TowerSettings):
    """Settings of one run; the defaults are a small CLIP for 64x64 images."""

    data: list[str]  # captioned images: tables, folders, tars, data sets of the Hub; see clip_guidance.data
    streaming: bool = False  # read the data during training, in constant memory, instead of holding all images
    shuffle_buffer: int = 4096  # of a stream: rows that a process holds and shuffles together; more than a class has
    workers: int = 4  # of a stream: threads per process that read and decode
    max_bad_share: float = 0.05  # of a stream: more bad rows end the run; they are listed in output/quarantine.jsonl
    vocabulary_rows: int = 100_000  # of a stream: rows whose captions the vocabulary is learnt from
    output: str  # folder for checkpoints, the log and the finished CLIP
    validation: str | None = None  # held-out images, read as the data is; measures R@1 and R@5 among their names
    exclude_captions_containing: str | None = None  # leave out images whose name, or a caption, contains this text
    init: str | None = None  # CLIP (folder or name) to continue from, with its architecture and vocabulary
    init_text: str | None = None  # CLIP whose text tower and vocabulary to continue from, beside a new image tower
    init_image: str | None = None  # CLIP whose image tower to continue from, beside a new text tower
    freeze_text: bool = False  # keep the text encoder, so that a UNet may go on reading it; its projection learns
    freeze_image: bool = False  # keep the image tower and its projection (LiT): images are embedded once, in advance
    lora_rank: int = 0  # above 0: train LoRA adapters of this rank, the projections and the temperature, nothing else
    random_flip: bool = False  # mirror each image with probability 1/2, where the data says that it may be
    grayscale_probability: float = 0.0  # of each image to lose its colours, in [0, 1]
    erasing_probability: float = 0.0  # of each image to get a white square over part of it, in [0, 1]
    max_noise_std: float = 0.0  # largest standard deviation of the noise on half of the images, of values in [0, 1]
    patch_dropout: float = 0.0  # share of the ViT's patches that a step leaves out, and about that share of its cost
    loss: str = "softmax"  # "softmax", CLIP's, or "sigmoid", SigLIP's
    class_name_loss_weight: float = 0.0  # of a second loss, each image among all names of the data; needs --freeze_text
    positives: str = "own"  # of softmax: "own" ignores others of a caption, "all" or "concept" (name) makes them right
    image_positives_weight: float = 0.0  # of a loss by which images of one name attract each other
    images_per_concept: int = 1  # images of one name that batches hold together, where there are as many
    keyword_share: float = 0.0  # of the captions that are keywords without the name, in [0, 1]
    composite_share: float = 0.0  # of the images that become composites of two, with captions that name both, in [0, 1]
    teachers: list[str] = field(default_factory=list)  # CLIPs (folders or names) whose mean ranking is learnt as well
    distillation_weight: float = 1.0  # of the teachers' loss
    text_anchor: str | None = None  # CLIP (folder or name) whose text states, which a denoiser reads, are kept
    text_anchor_weight: float = 1.0  # of the loss that keeps them
    freeze_batch_norm: bool = False  # needed for chunks or several processes where a tower has BatchNorm
    steps: int = 1000  # optimizer steps
    batch_size: int = 128  # pairs per process and step
    chunk_size: int | None = None  # pairs that go through the towers at a time; changes memory and time alone
    gradient_checkpointing: bool = False  # run transformer blocks twice and keep less; changes memory and time alone
    compile: bool = False  # compile the towers with torch.compile, which takes minutes at the first step
    ema_decay: float = 0.0  # above 0: save the average of the weights over about 1/(1 - ema_decay) steps
    learning_rate: float = 1e-3  # of AdamW, at the end of the warm-up; falls to zero along a cosine
    layer_decay: float = 1.0  # below 1 each block learns at this times the rate of the block behind it
    weight_decay: float = 0.1  # of AdamW, on matrices and kernels
    warmup: float = 100  # steps, or below 1 the share of all steps, in which the learning rate rises
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    seed: int = 0  # of the weights, the order of the data and every random draw
    log_every: int = 20  # steps from one row of the log to the next
    save_every: int = 200  # steps from one checkpoint to the next
    evaluate_every: int = 200  # steps from one measurement on the validation images to the next
    zero_shot_data: str | None = None  # images and classes: a folder per class, or a table with a column of classes
    zero_shot_label_column: str | None = None  # of zero_shot_data; by default the first column with a customary name
    zero_shot_templates: list[str] = field(default_factory=list)  # prompts of a class: "a photo of a {}" ...
    zero_shot_every: int = 200  # steps from one measurement of zero-shot classification to the next
    retrieval_data: str | None = None  # captioned images among which captions and images look for each other
    retrieval_every: int = 200  # steps from one measurement of retrieval to the next
    keep_best: bool = False  # also save, in output/best, the CLIP for which best_metric was highest
    best_metric: str = "R@1"  # of the validation images; or zero_shot_top1, retrieval_text_R@1 ..., as the log has it
    report_to: list[str] = field(default_factory=list)  # accelerate's trackers: tensorboard, wandb ...


def check_settings(settings: Settings) -> None:
    """End the program where settings contradict each other.

    Raises:
        SystemExit: Names the option and what it needs.
    """
    for name, known in (("image_tower", IMAGE_TOWERS), ("text_tower", TEXT_TOWERS)):
        if getattr(settings, name) not in known:
            raise SystemExit(f"--{name}: expected one of {', '.join(known)}, got {getattr(settings, name)!r}")
    try:
        settings.image_config()
    except ValueError as error:
        raise SystemExit(str(error)) from None
    given = [f"--{name}" for name in ("init", "init_text", "init_image") if getattr(settings, name)]
    if len(given) > 1:
        raise SystemExit(f"expected one CLIP to go on from, got {', '.join(given)}")
    _check_objective(settings)
    if settings.keep_best:
        _check_best_metric(settings)
    if settings.streaming:
        _check_streaming(settings)
    if settings.freeze_image and not (settings.init or settings.init_image):
        raise SystemExit("--freeze_image: needs --init or --init_image, the CLIP whose image tower is locked")
    altering = [f"--{name}" for name in AUGMENTATIONS if getattr(settings, name)]
    if settings.freeze_image and altering:
        raise SystemExit(f"--freeze_image: images are embedded once, as they are, without {', '.join(altering)}")
    _check_class_name_loss(settings)
    if settings.lora_rank and (not settings.init or settings.freeze_text or settings.freeze_image):
        raise SystemExit("--lora_rank: needs --init, the CLIP that is adapted, and neither of its towers frozen")


def _check_objective(settings: Settings) -> None:
    """End the program where a part of the loss, or what it is of, is out of range or lacks what it needs."""
    if settings.positives not in POSITIVES:
        raise SystemExit(f"--positives: expected one of {', '.join(POSITIVES)}, got {settings.positives!r}")
    for name in ("keyword_share", "composite_share"):
        if not 0 <= getattr(settings, name) <= 1:
            raise SystemExit(f"--{name}: expected a share in [0, 1], got {getattr(settings, name):g}")
    for name in ("image_positives_weight", "distillation_weight", "text_anchor_weight"):
        if getattr(settings, name) < 0:
            raise SystemExit(f"--{name}: expected a weight of at least 0, got {getattr(settings, name):g}")
    if settings.images_per_concept < 1:
        raise SystemExit(f"--images_per_concept: expected at least 1, got {settings.images_per_concept}")
    if settings.image_positives_weight and settings.positives != "concept":
        raise SystemExit("--image_positives_weight: needs --positives concept, by which images have a name")
    if settings.positives == "concept" and settings.loss != "softmax":
        raise SystemExit(f"--positives concept: needs --loss softmax, got {settings.loss!r}")
    if settings.text_anchor and settings.freeze_text:
        raise SystemExit("--text_anchor: keeps the states of a text tower that learns, which --freeze_text forbids")
    if settings.teachers and settings.freeze_image:
        raise SystemExit("--teachers: rank views of the images, which --freeze_image embeds once and drops")


def _check_best_metric(settings: Settings) -> None:
    """End the program where the metric that chooses would not be measured."""
    if settings.best_metric not in NEEDED_DATA:
        raise SystemExit(f"--best_metric: expected one of {', '.join(NEEDED_DATA)}, got {settings.best_metric!r}")
    if not getattr(settings, needed := NEEDED_DATA[settings.best_metric]):
        raise SystemExit(f"--keep_best: needs --{needed}, the images that {settings.best_metric} is measured on")


def _check_streaming(settings: Settings) -> None:
    """End the program where an option needs all images at once."""
    if settings.freeze_image:
        raise SystemExit("--streaming: images are not kept, so it cannot be combined with --freeze_image")
    in_memory = [f"--{name}" for name in ("keyword_share", "composite_share") if getattr(settings, name)]
    in_memory += ["--images_per_concept"] * (settings.images_per_concept > 1)
    in_memory += ["--text_anchor"] * bool(settings.text_anchor)
    if in_memory:
        raise SystemExit(f"--streaming: captions come as they are, which {', '.join(in_memory)} cannot do")
    if settings.shuffle_buffer < 0 or settings.workers < 0:
        found = f"{settings.shuffle_buffer} and {settings.workers}"
        raise SystemExit(f"--streaming: expected shuffle_buffer and workers of at least 0, got {found}")


def _check_class_name_loss(settings: Settings) -> None:
    """End the program where the names cannot be read once, before training."""
    weight, option = settings.class_name_loss_weight, "--class_name_loss_weight"
    if weight < 0:
        raise SystemExit(f"{option}: expected a weight of at least 0, got {weight:g}")
    if weight and not settings.freeze_text:
        raise SystemExit(f"{option}: all names are read once, before training, which needs --freeze_text")
    if weight and settings.streaming:
        raise SystemExit(f"{option}: all names are read once, before training, which --streaming cannot do")
