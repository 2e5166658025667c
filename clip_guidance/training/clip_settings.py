"""Settings of ``training/train_clip.py``, and which of them contradict each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_guidance.training.evaluation import KS
from clip_guidance.training.settings import TowerSettings

CHOOSES = {  # what --best_by may name, and the setting that has it measured
    **dict.fromkeys(("R@1", "R@5"), "validation"),
    **dict.fromkeys(("zero_shot_top1", "zero_shot_mean_per_class_recall"), "zero_shot_data"),
    **{f"retrieval_{asked}_R@{k}": "retrieval_data" for asked in ("text", "image") for k in KS},
}


@dataclass(frozen=True, kw_only=True)
class Settings(TowerSettings):
    """Settings of one run; the defaults are a small CLIP for 64x64 images."""

    data: list[str]  # captioned images: tables, folders, tars, data sets of the Hub; see clip_guidance.data
    streaming: bool = False  # read the data as training goes, in constant memory, instead of holding all its images
    shuffle_buffer: int = 4096  # of a stream: rows a process holds and shuffles together; more than a class has
    workers: int = 4  # of a stream: threads a process that read and decode
    max_bad_share: float = 0.05  # of a stream: more bad rows end the run; they are listed in output/quarantine.jsonl
    vocabulary_rows: int = 100_000  # of a stream: rows whose captions the vocabulary is learnt from
    output: str  # folder for checkpoints, the log and the finished CLIP
    validation: str | None = None  # held-out images, read as the data is
    exclude: str | None = None  # leave out images whose name, or a caption, contains this
    init: str | None = None  # CLIP (folder or name) to go on from; its architecture and vocabulary hold
    init_text: str | None = None  # CLIP whose text tower and vocabulary to go on from, beside a new image tower
    init_image: str | None = None  # CLIP whose image tower to go on from, beside a new text tower
    freeze_text: bool = False  # the text encoder stays as it is (its projection learns): a UNet that reads it goes on
    freeze_image: bool = False  # the image half stays as it is: every image is embedded once, before training (LiT)
    lora_rank: int = 0  # above 0: train adapters of that rank, the projections and the temperature, nothing else
    mirror: bool = False  # half of the images that show the same when mirrored are
    grey: float = 0.0  # share of the images that lose their colours
    holes: float = 0.0  # share of the images with a white hole
    noise: float = 0.0  # largest standard deviation of the noise on half of the images, which are in [0, 1]
    patch_dropout: float = 0.0  # share of the ViT's patches that a step leaves out, and about that share of its cost
    loss: str = "softmax"  # CLIP's, or "sigmoid", SigLIP's
    names: float = 0.0  # weight of a second loss: each image among all names of the data; needs --freeze_text
    adversarial: float = 0.0  # with names: how far an image may be moved against its name; for a CLIP that guides
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
    zero_shot_data: str | None = None  # images and their classes: a folder a class, or a table, see zero_shot_label
    zero_shot_label: str | None = None  # its column of classes; by default the first with a customary name
    zero_shot_templates: list[str] = field(default_factory=list)  # "a photo of a {}", ...
    zero_shot_every: int = 200
    retrieval_data: str | None = None  # captioned images among which captions and images look for each other
    retrieval_every: int = 200
    keep_best: bool = False  # also save, in output/best, the CLIP whose best_by was highest
    best_by: str = "R@1"  # of the held-out images; or zero_shot_top1, retrieval_text_R@1, ... as the log has it
    report_to: list[str] = field(default_factory=list)  # accelerate's trackers: tensorboard, wandb, ...


def check(settings: Settings) -> None:
    """Ends the program where settings contradict each other."""
    for name, known in (("image_tower", IMAGE_TOWERS), ("text_tower", TEXT_TOWERS)):
        if getattr(settings, name) not in known:
            raise SystemExit(f"--{name}: expected one of {', '.join(known)}, got {getattr(settings, name)!r}")
    given = [f"--{name}" for name in ("init", "init_text", "init_image") if getattr(settings, name)]
    if len(given) > 1:
        raise SystemExit(f"expected one CLIP to go on from, got {', '.join(given)}")
    if settings.keep_best:
        _check_best(settings)
    if settings.streaming:
        _check_streaming(settings)
    if settings.freeze_image and not (settings.init or settings.init_image):
        raise SystemExit("--freeze_image: needs --init or --init_image, the CLIP whose image tower is locked")
    altering = [
        f"--{name}" for name in ("mirror", "grey", "holes", "noise", "patch_dropout") if getattr(settings, name)
    ]
    if settings.freeze_image and altering:
        raise SystemExit(f"--freeze_image: images are embedded once, as they are, without {', '.join(altering)}")
    if settings.names < 0:
        raise SystemExit(f"--names: expected a weight of at least 0, got {settings.names:g}")
    if settings.names and (not settings.freeze_text or settings.streaming):
        raise SystemExit("--names: all names are read once, which needs --freeze_text and goes without --streaming")
    if settings.adversarial < 0:
        raise SystemExit(f"--adversarial: expected a distance of at least 0, got {settings.adversarial:g}")
    if settings.adversarial and (not settings.names or settings.freeze_image):
        raise SystemExit("--adversarial: moves images against their names, which needs --names, not --freeze_image")
    if settings.lora_rank and (not settings.init or settings.freeze_text or settings.freeze_image):
        raise SystemExit("--lora_rank: needs --init, the CLIP that is adapted, and neither of its towers frozen")


def _check_best(settings: Settings) -> None:
    """Ends the program where nothing would be measured by the name that chooses."""
    if settings.best_by not in CHOOSES:
        raise SystemExit(f"--best_by: expected one of {', '.join(CHOOSES)}, got {settings.best_by!r}")
    if not getattr(settings, needed := CHOOSES[settings.best_by]):
        raise SystemExit(f"--keep_best: needs --{needed}, the images that choose by {settings.best_by}")


def _check_streaming(settings: Settings) -> None:
    """Ends the program where something needs all images at once."""
    if settings.freeze_image:
        raise SystemExit("--streaming: images pass by, which goes without --freeze_image")
    if settings.shuffle_buffer < 0 or settings.workers < 0:
        found = f"{settings.shuffle_buffer} and {settings.workers}"
        raise SystemExit(f"--streaming: expected shuffle_buffer and workers of at least 0, got {found}")
