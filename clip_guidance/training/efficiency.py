"""Cheaper training steps: patch dropout, gradient checkpointing, compilation; none is saved."""

from __future__ import annotations

from clip_guidance.clip import CLIP
from clip_guidance.towers.vit import VisionTransformer


def set_patch_dropout(clip: CLIP, share: float) -> None:
    """Drop a random share of the patches of each image in training mode.

    Args:
        clip: With a ViT as its image tower.
        share: In [0, 1), drawn anew in each pass; FLIP (Li et al. 2023, arXiv:2212.00794) uses 0.5 and
            0.75, then a short training with 0.

    Raises:
        ValueError: ``share`` is out of range, or the image tower has no patches.
    """
    if not 0 <= share < 1:
        raise ValueError(f"patch_dropout: expected a share in [0, 1), got {share}")
    vision_model = clip.image_encoder.vision_model
    if not isinstance(vision_model, VisionTransformer):
        raise ValueError(f"patch_dropout: expected a ViT as the image tower, got {type(clip.image_encoder).__name__}")
    vision_model.patch_dropout = share


def checkpoint_blocks(clip: CLIP) -> None:
    """Recompute the activations of transformer blocks in the backward pass.

    Frozen towers keep no activations, and are left as they are.

    Raises:
        ValueError: No tower that is trained has transformer blocks.
    """
    trained = [
        tower for tower in (clip.image_encoder, clip.text_encoder) if any(p.requires_grad for p in tower.parameters())
    ]
    chosen = [tower for tower in trained if tower.supports_gradient_checkpointing]
    if not chosen:
        names = ", ".join(type(tower).__name__ for tower in trained) or "none that is trained"
        raise ValueError(f"gradient_checkpointing: expected a tower of transformer blocks, got {names}")
    for tower in chosen:
        # transformers before 5.2x calls the method gradient_checkpointing_enable
        enable = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def compile_towers(clip: CLIP) -> None:
    """Compile each tower with ``torch.compile``.

    The first call of a tower then takes minutes; the weights keep their names.
    """
    for tower in (clip.image_encoder, clip.text_encoder):
        tower.compile()
