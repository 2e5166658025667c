"""Every parameter is in one group, with the weight decay of its kind and the learning rate of its depth."""

import pytest
import torch
from accelerate import Accelerator
from helpers.factories import TEXTS, make_clip
from safetensors.torch import load_file
from torch import nn

from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.training.optimizer import learning_rate, parameter_groups
from clip_guidance.training.trainer import Plan, fit

# The first prefix that fits a name says how many blocks stand behind it in its tower; the towers of tests/tiny.py have
# 2 (ViT), 3 (transformer), 3 (ResNet: 1 + 2) and 1 (bag of words) blocks.
BEHIND = {
    "vit": {
        "image_encoder.vision_model.embeddings.": 2,
        "image_encoder.vision_model.pre_layrnorm.": 2,
        "image_encoder.vision_model.encoder.layers.0.": 1,
    },
    "transformer": {
        "text_encoder.text_model.embeddings.": 3,
        "text_encoder.text_model.encoder.layers.0.": 2,
        "text_encoder.text_model.encoder.layers.1.": 1,
    },
    "resnet": {
        "image_encoder.vision_model.stem.": 3,
        "image_encoder.vision_model.stages.0.0.": 2,
        "image_encoder.vision_model.stages.1.0.": 1,
    },
    "cbow": {
        "text_encoder.text_model.embeddings.": 1,
        "text_encoder.text_model.final_layer_norm.": 1,
    },
}


def by_name(module, groups):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [(names[parameter], group) for group in groups for parameter in group["params"]]


@pytest.mark.parametrize(("image", "text"), [("vit", "transformer"), ("resnet", "cbow")])
def test_the_rate_falls_with_the_blocks_behind(image, text):
    clip = make_clip(image, text)
    found = by_name(clip, parameter_groups(clip, 0.1, layer_decay=0.5))
    assert sorted(name for name, _ in found) == sorted(name for name, _ in clip.named_parameters())  # each once
    behind = BEHIND[image] | BEHIND[text]
    unused = set(behind)
    for name, group in found:
        prefix = next((prefix for prefix in behind if name.startswith(prefix)), None)
        unused.discard(prefix)
        assert group["lr_scale"] == 0.5 ** behind.get(prefix, 0), name
        assert group["weight_decay"] == (0.1 if clip.get_parameter(name).ndim >= 2 else 0.0), name
    assert not unused
    decays = {name: group["weight_decay"] for name, group in found}
    assert decays["logit_scale"] == 0 and decays["text_projection.weight"] == 0.1


def test_the_order_is_the_same_whatever_the_rates():
    """So the moments of a checkpoint, which are saved by their place, fit."""
    objective = ContrastiveObjective(make_clip(), loss="sigmoid")
    objective.clip.text_encoder.requires_grad_(False)
    plain, decayed = (by_name(objective, parameter_groups(objective, 0.1, decay)) for decay in (1.0, 0.8))
    assert [name for name, _ in plain] == [name for name, _ in decayed]
    assert {group["lr_scale"] for _, group in plain} == {1.0}
    assert {group["lr_scale"] for _, group in decayed} == {1.0, 0.8, 0.8**2}
    assert not any("text_encoder" in name for name, _ in plain)  # what is frozen is in no group


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.5, float("nan")])
def test_rates_out_of_range_are_named(layer_decay):
    with pytest.raises(ValueError, match=f"layer_decay: expected more than 0 and at most 1, got {layer_decay}"):
        parameter_groups(make_clip(), 0.1, layer_decay)


def test_a_model_without_towers_has_no_layers_to_tell_apart():
    with pytest.raises(ValueError, match=r"layer_decay 0\.8: expected a module with an image .* got Linear"):
        parameter_groups(nn.Linear(2, 2), 0.1, 0.8)


def test_the_schedule_multiplies_the_rate_of_each_group(tmp_path):
    """The first step of Adam moves what has a gradient by its learning rate, whatever the gradient."""
    clip = make_clip().double().train()
    objective = ContrastiveObjective(clip)
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = {name: value.detach().clone() for name, value in objective.named_parameters()}
    plan = Plan(4, 1e-3, 2, 0.0, 1e9, seed=0, log_every=1, save_every=1, layer_decay=0.5)

    class Stopped(Exception):
        pass

    def stop(done):
        raise Stopped

    with pytest.raises(Stopped):
        fit(
            Accelerator(),
            objective,
            lambda model, step: {"loss": 1e6 * model(images, tokenize(clip.tokenizer, TEXTS))},
            plan,
            tmp_path,
            after_step=stop,
        )
    rate = learning_rate(0, 4, 1e-3, 2)
    assert rate == 5e-4
    for name, blocks_behind in [
        ("clip.image_encoder.vision_model.encoder.layers.1.mlp.fc2.weight", 0),
        ("clip.image_encoder.vision_model.encoder.layers.0.mlp.fc2.weight", 1),
        ("clip.image_encoder.vision_model.embeddings.patch_embedding.weight", 2),
        ("clip.text_encoder.text_model.encoder.layers.0.mlp.fc2.weight", 2),
        ("clip.text_encoder.text_model.embeddings.position_embedding.weight", 3),
        ("clip.visual_projection.weight", 0),
        ("clip.logit_scale", 0),
    ]:
        moved = (objective.get_parameter(name).detach() - before[name]).abs().max()
        assert float(moved) == pytest.approx(rate * 0.5**blocks_behind, rel=1e-4), name


def test_a_checkpoint_of_one_rate_goes_on_with_another(tmp_path):
    def run(steps, layer_decay):
        clip = make_clip().train()
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        plan = Plan(steps, 1e-3, 1, 0.1, 1.0, seed=0, log_every=1, save_every=1, layer_decay=layer_decay)
        inputs = images, tokenize(clip.tokenizer, TEXTS)
        fit(Accelerator(), ContrastiveObjective(clip), lambda model, step: {"loss": model(*inputs)}, plan, tmp_path)

    run(1, 1.0)
    first = load_file(tmp_path / "checkpoints" / "step-1.safetensors")
    run(2, 0.5)
    second = load_file(tmp_path / "checkpoints" / "step-2.safetensors")
    moments = [name for name in first if name.startswith("optimizer/")]
    assert moments and all(first[name].shape == second[name].shape for name in moments)
    assert all(second[name] == 2 for name in moments if name.endswith("/step"))
