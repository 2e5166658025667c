"""Training of a tower for noisy latents: what it learns, resumed to the bit, measured by noise level."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers.interrupted import train_interrupted
from helpers.tables import write_table

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.diffusion import noisy_tower, train_noisy_tower
from clip_guidance.training.order import SampleOrder


def test_noise_is_mixed_in_by_the_angle():
    x0, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    angle = torch.tensor([0.0, 0.3, 1.2, math.pi / 2])
    mixed, log_snr = noisy_tower.noisy(x0, angle, noise)
    torch.testing.assert_close(mixed[0], x0[0])
    torch.testing.assert_close(mixed[3], noise[3])
    torch.testing.assert_close(log_snr[1:3].exp(), 1 / angle[1:3].tan())
    assert log_snr[0] > 10 and log_snr[3] < -10


@pytest.mark.slow
def test_the_loss_is_that_of_its_equation(tmp_path):
    """Cross-entropy over all texts and 1 − cos, by hand, for the plain and for the full texts."""
    data = CaptionedImages.load(write_table(tmp_path / "t.parquet", ["cat", "dog", "cat", "bus"], size=64), 64)
    clip, vae = cg.CLIP.from_pretrained("emoji"), cg.load_pipeline("emoji").vae
    accelerator = Accelerator(cpu=True)
    order = SampleOrder(len(data), 4, 0, accelerator)
    loss = noisy_tower.NoisyTowerLoss(clip, vae, data, order, accelerator, distill_weight=0.5, label_smoothing=0.0)
    tower, seen = cg.NoisyTower(4, 128, [8, 16], 1), []

    def model(*inputs):
        seen.append(tower(*inputs))
        return seen[-1]

    names = ["cat", "dog", "bus"]
    prompts = list(dict.fromkeys(row.prompt for row in data.rows))
    for step in range(3):
        torch.manual_seed(step)
        found = loss(model, step)
        texts, right = (prompts, prompts) if step % 2 else (names, names)
        rows = [data.rows[i] for i in order(step).tolist()]
        own = [right.index(row.prompt if step % 2 else row.name) for row in rows]
        wording = texts if step % 2 else [("{}", "a {}")[step // 2].format(name) for name in texts]
        logits = seen[-1].logit_scale.exp()[:, None] * seen[-1].embeds @ clip.encode_text(wording).T
        clean = clip.encode_image(data.images[order(step)])
        distance = 1 - F.cosine_similarity(seen[-1].embeds, clean).mean()
        torch.testing.assert_close(found["loss"], F.cross_entropy(logits, torch.tensor(own)) + 0.5 * distance)


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped_and_is_measured(tmp_path):
    program = train_noisy_tower
    table = str(write_table(tmp_path / "train.parquet", ["cat", "dog", "bus", "tree"], size=64))
    kinds = {"data": table, "clip": "emoji", "autoencoder": "emoji", "widths": [8, 16], "depth": 1, "steps": 3}
    kinds |= {"batch_size": 2, "warmup": 1, "save_every": 1, "evaluate_every": 2, "random_flip": True}
    program.train(program.Settings(output=str(tmp_path / "whole"), validation=table, **kinds), Accelerator(cpu=True))
    whole = cg.NoisyTower.from_pretrained(tmp_path / "whole" / "final")
    train_interrupted(program, program.Settings(output=str(tmp_path / "parts"), **kinds))
    resumed = cg.NoisyTower.from_pretrained(tmp_path / "parts" / "final")
    for name, value in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {f"R@1_noise_{level:.2f}" for level in noisy_tower.LEVELS} <= set(rows[-1])
    card = (tmp_path / "whole" / "final" / "README.md").read_text()
    assert "reads latents of `emoji`" in card and card.count("\n| 0.") == len(noisy_tower.LEVELS)
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    with cg.CLIPGuidance("emoji", "cat", 5.0, mode=cg.Noisy(whole)).attach(pipe) as guidance:
        pipe("a cat", num_inference_steps=2, height=32, width=32)
    assert len(guidance.report.rewards) == 2
