"""What is shown while a CLIP is trained, and that the options of the program do what they say."""

import io

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from helpers.factories import TEXTS, make_clip, with_adapter
from helpers.tables import write_table
from rich.console import Console
from torch import nn

from clip_guidance.clip import CLIP
from clip_guidance.training.efficiency import compile_towers
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.log import read_log
from clip_guidance.training.progress import Progress
from clip_guidance.training.trainer import Plan, fit

# What is shown on the way


class Recorder(GeneralTracker):
    name, requires_logging_directory = "recorder", False

    def __init__(self):
        super().__init__()
        self.config, self.rows, self.ended = None, [], False

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))

    def finish(self):
        self.ended = True


def small_run(accelerator, folder, phase, **options):
    torch.manual_seed(0)
    plan = Plan(5, 0.1, 1, 0.0, 1.0, seed=3, log_every=2, save_every=9, **options)

    def loss(model, step):
        value = model(torch.ones(2, 4)).square().mean()
        return {"loss": value, "twice": 2 * value.detach()}

    after = {3: {"R@1": 0.5}}
    fit(accelerator, nn.Linear(4, 1), loss, plan, folder, phase=phase, after_step=lambda done: after.get(done, {}))


@pytest.mark.parametrize(("phase", "prefix"), [("clip", "clip/"), ("", "")])
def test_trackers_get_the_rows_of_the_log(phase, prefix, tmp_path):
    tracker = Recorder()
    accelerator = make_accelerator([tracker], tmp_path)
    small_run(accelerator, tmp_path, phase)
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 4, 5]
    shared = [{k: v for k, v in row.items() if k not in ("step", "seconds", "phase")} for row in rows]
    assert tracker.rows == [
        (row["step"], {f"{prefix}{name}": value for name, value in values.items()})
        for row, values in zip(rows, shared, strict=True)
    ]
    assert {"loss", "twice", "grad_norm", "R@1"} == shared[1].keys()
    accelerator.end_training()
    assert tracker.ended


def test_unknown_trackers_are_named(monkeypatch):
    monkeypatch.setattr("clip_guidance.training.launch.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"report_to: expected trackers .* \(tensorboard\), got wandb, paper"):
        make_accelerator(["wandb", "tensorboard", "paper"])
    monkeypatch.setattr("clip_guidance.training.launch.get_available_trackers", list)
    with pytest.raises(ValueError, match=r"installed \(none is\), got wandb"):
        make_accelerator(["wandb"])


def progress(terminal, **options):
    out, seconds = io.StringIO(), iter([100.0, 102.0, 110.0])
    console = Console(file=out, force_terminal=terminal, width=120)
    shown = Progress("clip", 3, 1000, console=console, clock=lambda: next(seconds), **options)
    with shown:
        for values, steps in (({"loss": 1.5, "R@1": 0.25}, 4), ({"loss": 123456.0}, 16)):
            for _ in range(steps):
                shown.advance()
            shown.show(values)
    return out.getvalue()


def test_without_a_terminal_there_is_a_line_for_every_row():
    assert progress(False, batch_size=64) == (
        "clip 7/1000  loss 1.5  R@1 0.25  128 samples/s\n"  # 4 · 64 samples in 2 seconds
        "clip 23/1000  loss 1.235e+05  128 samples/s\n"  # 16 · 64 in 8
    )
    assert "R@1 0.25  2 steps/s\n" in progress(False)
    assert progress(False, enabled=False) == progress(True, enabled=False) == ""


def test_on_a_terminal_there_is_one_bar():
    shown = progress(True, batch_size=64)
    assert "23/1000" in shown and "loss 1.235e+05  128 samples/s" in shown and "clip 7/1000  loss" not in shown


def test_fit_shows_the_loss_and_the_speed(tmp_path, capfd):
    small_run(Accelerator(), tmp_path, "clip", batch_size=2)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "3/5", "4/5", "5/5"]
    assert all("loss " in line and line.endswith("samples/s") for line in lines) and "R@1 0.5" in lines[1]


# The program


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The folder of a CLIP to go on from."""
    folder = tmp_path_factory.mktemp("known")
    make_clip().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def settings(train_clip, tmp_path_factory):
    """Makes small settings of the program."""
    data = write_table(tmp_path_factory.mktemp("data") / "train.parquet", ["cat", "dog", "bus", "tree"], size=32)
    sizes = {"image_size": 32, "image_width": 32, "image_layers": 2, "text_width": 32, "text_layers": 2}
    small = sizes | {"batch_size": 2, "vocab_size": 600, "context_length": 40, "log_every": 1, "steps": 2, "warmup": 0}
    small |= {"data": [str(data)], "projection_dim": 16}
    return lambda folder, **options: train_clip.Settings(**{**small, "output": str(folder), **options})


def embeddings(clip):
    return clip.encode_text(TEXTS), clip.encode_image(
        list(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    )


def test_settings_reach_the_towers_and_the_loop(train_clip, settings, tmp_path, monkeypatch):
    compiled, seen = [], {}
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(train_clip, "fit", lambda accelerator, objective, loss, plan, *_, **__: seen.update(locals()))
    recorder = Recorder()
    options = {"patch_dropout": 0.5, "gradient_checkpointing": True, "compile": True, "report_to": [recorder]}
    train_clip.main(settings(tmp_path, **options, layer_decay=0.7, warmup=0.25, steps=8))
    clip, plan = seen["objective"].clip, seen["plan"]
    assert clip.image_encoder.vision_model.patch_dropout == 0.5
    encoders = [clip.image_encoder.vision_model.encoder, clip.text_encoder.text_model.encoder]
    assert all(layer.gradient_checkpointing for encoder in encoders for layer in encoder.layers)
    assert compiled == [clip.image_encoder, clip.text_encoder]
    assert (plan.layer_decay, plan.warmup, plan.batch_size) == (0.7, 0.25, 2)
    assert recorder.config["layer_decay"] == 0.7 and recorder.config["image_tower"] == "vit" and recorder.ended
    assert all(isinstance(value, bool | int | float | str) for value in recorder.config.values())


def test_compiled_towers_keep_the_names_of_their_weights(monkeypatch):
    clip = make_clip()
    names = list(clip.state_dict())
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: made.append(function) or function)
    compile_towers(clip)
    assert len(made) == 2 and list(clip.state_dict()) == names


@pytest.mark.parametrize(
    ("option", "parts"), [("freeze_image", {"image_encoder", "visual_projection"}), ("freeze_text", {"text_encoder"})]
)
def test_what_is_frozen_is_no_parameter_of_the_optimizer(option, parts, train_clip, settings, tmp_path):
    """DistributedDataParallel would wait for its gradients."""
    clip = make_clip()
    train_clip.prepare_towers(clip, settings(tmp_path, **{option: True}))
    frozen = {name.split(".")[0] for name, parameter in clip.named_parameters() if not parameter.requires_grad}
    assert frozen == parts


@pytest.mark.slow
def test_images_learn_among_all_names(train_clip, settings, known, tmp_path):
    """The text encoder stays as it is; the loss is the plain one and that over the names, both above 0."""
    options = {"init": known, "freeze_text": True, "steps": 1, "log_every": 1}
    for folder, weight in (("plain", 0.0), ("named", 2.0)):
        train_clip.main(settings(tmp_path / folder, class_name_loss_weight=weight, **options))
    plain, named = (CLIP.from_pretrained(tmp_path / folder) for folder in ("plain", "named"))
    assert all(
        value.equal(plain.text_encoder.state_dict()[key]) for key, value in named.text_encoder.state_dict().items()
    )
    assert not embeddings(plain)[1].equal(embeddings(named)[1])
    losses = [read_log(tmp_path / folder / "log.jsonl")[0]["loss"] for folder in ("plain", "named")]
    assert losses[1] > losses[0] + 0.1


RUNS = {"images_per_concept": 2}  # so that a batch has two images of a name
PARTS = {  # of the loss, or of what it is of: each alone, beside what it needs
    "positives": (RUNS | {"positives": "concept"}, RUNS),
    "images": (RUNS | {"positives": "concept", "image_positives_weight": 1.0}, RUNS | {"positives": "concept"}),
    "runs": (RUNS, {}),
    "keywords": ({"keyword_share": 1.0}, {}),
    "composites": ({"composite_share": 1.0}, {}),
    "teachers": ({"teachers": True}, {}),
    "anchor": ({"text_anchor": True}, {}),
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Settings of the program on images of which two share a name each, and the folder of a teacher."""
    folder = tmp_path_factory.mktemp("taught")
    names = [name for name in ("cat", "dog", "bus", "tree") for _ in range(2)]
    make_clip(seed=5).save_pretrained(folder / "teacher")
    data = str(write_table(folder / "train.parquet", names, size=32))
    return {"data": [data], "batch_size": 4, "save_every": 1}, str(folder / "teacher")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clip_guidance.clip.tokenizer.PromptTruncatedWarning")  # they read letters
@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_loss_reaches_the_log(part, train_clip, settings, known, taught, tmp_path):
    options, teacher = taught
    with_part, without = ({**each, "init": known, "steps": 1, **options} for each in PARTS[part])
    if "teachers" in with_part:
        with_part["teachers"] = [teacher]
    if "text_anchor" in with_part:
        with_part["text_anchor"] = teacher
    losses = []
    for folder, chosen in (("with", with_part), ("without", without)):
        train_clip.main(settings(tmp_path / folder, **chosen))
        losses.append(read_log(tmp_path / folder / "log.jsonl")[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] > losses[1] + 1e-3 or part not in ("images", "teachers", "anchor")  # which are added


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clip_guidance.clip.tokenizer.PromptTruncatedWarning")  # they read letters
def test_a_run_with_all_parts_resumes_to_the_bit(train_clip, settings, known, taught, tmp_path):
    options, teacher = taught
    options = options | {"init": known, "positives": "concept", "images_per_concept": 2, "image_positives_weight": 1.0}
    options |= {"keyword_share": 0.5, "composite_share": 0.5, "teachers": [teacher], "text_anchor": teacher}
    for folder, counts in (("whole", (3,)), ("resumed", (2, 3))):
        for steps in counts:
            train_clip.main(settings(tmp_path / folder, **options, steps=steps, learning_rate=1e-3, warmup=3))
    made, again = (CLIP.from_pretrained(tmp_path / folder) for folder in ("whole", "resumed"))
    rows = [read_log(tmp_path / folder / "log.jsonl") for folder in ("whole", "resumed")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert all(value.equal(again.state_dict()[key]) for key, value in made.state_dict().items())
    assert not embeddings(made)[1].equal(embeddings(CLIP.from_pretrained(known))[1])


@pytest.mark.parametrize("init", [pytest.param("init", marks=pytest.mark.slow), "init_image"])
def test_a_locked_image_half_stays_as_it_is(init, train_clip, settings, known, tmp_path):
    train_clip.main(settings(tmp_path, freeze_image=True, **{init: known}))
    made, before = CLIP.from_pretrained(tmp_path), CLIP.from_pretrained(known)
    assert (tmp_path / "image-embeds.safetensors").is_file()
    (text, image), (text_before, image_before) = embeddings(made), embeddings(before)
    assert image.equal(image_before) and not torch.allclose(text, text_before)
    assert made.config.text_config.num_hidden_layers == (2 if init == "init_image" else 3)
    losses = [row["loss"] for row in read_log(tmp_path / "log.jsonl")]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # which peft asks for
def test_lora_saves_the_merged_clip_and_the_adapter(train_clip, settings, known, tmp_path):
    options = {"validation": settings(tmp_path).data[0], "keep_best": True, "evaluate_every": 1, "ema_decay": 0.5}
    train_clip.main(settings(tmp_path, init=known, lora_rank=2, learning_rate=0.01, **options))
    before = embeddings(CLIP.from_pretrained(known))
    for folder in (tmp_path, tmp_path / "best"):
        made = CLIP.from_pretrained(folder)
        adapted = with_adapter(CLIP.from_pretrained(known), folder / "adapter")
        assert list(made.state_dict()) == list(adapted.state_dict())
        for found, expected, old in zip(embeddings(adapted), embeddings(made), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            assert (found - old).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "a", "init_image": "b"}, "expected one CLIP to go on from, got --init, --init_image"),
        ({"freeze_image": True}, "--freeze_image: needs --init or --init_image"),
        (
            {"freeze_image": True, "init": "a", "grayscale_probability": 0.1, "patch_dropout": 0.5},
            "as they are, without --grayscale_probability, --patch",
        ),
        ({"lora_rank": 4}, "--lora_rank: needs --init, the CLIP that is adapted"),
        ({"lora_rank": 4, "init": "a", "freeze_text": True}, "neither of its towers frozen"),
        ({"class_name_loss_weight": -1.0}, "--class_name_loss_weight: expected a weight of at least 0, got -1"),
        ({"class_name_loss_weight": 1.0}, "names are read once, before training, which needs --freeze_text"),
        ({"class_name_loss_weight": 1.0, "freeze_text": True, "streaming": True}, "which --streaming cannot do"),
        ({"positives": "mine"}, "--positives: expected one of own, all, concept, got 'mine'"),
        ({"positives": "concept", "loss": "sigmoid"}, "--positives concept: needs --loss softmax, got 'sigmoid'"),
        ({"image_positives_weight": 1.0}, "--image_positives_weight: needs --positives concept"),
        ({"distillation_weight": -1.0}, "--distillation_weight: expected a weight of at least 0, got -1"),
        ({"text_anchor_weight": -1.0}, "--text_anchor_weight: expected a weight of at least 0, got -1"),
        ({"text_anchor": "a", "freeze_text": True}, "--text_anchor: keeps the states of a text tower that learns"),
        ({"text_anchor": "a", "streaming": True}, "captions come as they are, which --text_anchor cannot do"),
        ({"keyword_share": 1.5}, r"--keyword_share: expected a share in \[0, 1\], got 1.5"),
        ({"composite_share": 0.5, "streaming": True}, "captions come as they are, which --composite_share cannot do"),
        ({"images_per_concept": 0}, "--images_per_concept: expected at least 1, got 0"),
        ({"teachers": ["a"], "init": "b", "freeze_image": True}, "--teachers: rank views of the images"),
        ({"image_width": 0}, "hidden_size: expected at least 1, got 0"),
        ({"image_width": 32, "patch_size": 64}, "patch_size: expected 1 to 32, got 64"),
        ({"report_to": ["paper"]}, "report_to: expected trackers that are installed"),
    ],
)
def test_contradicting_settings_are_named(options, message, train_clip, settings, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train_clip.main(settings(tmp_path, **options))
