"""What can be done to the towers of a CLIP for the time of their training; nothing of it is saved with them."""

from __future__ import annotations

from clip_guidance.clip import CLIP
from clip_guidance.towers.vit import VisionTransformer


def set_patch_dropout(clip: CLIP, share: float) -> None:
    """Leaves out this share of the patches of each image in training mode, drawn anew in each pass.

    Args:
        clip: with a ViT as its image tower.
        share: in [0, 1); FLIP (Li et al. 2023, arXiv:2212.00794) uses 0.5 and 0.75, then a short training with 0.

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
    """Runs the transformer blocks again in the backward pass instead of keeping their activations.

    Towers that are frozen keep nothing anyway, and are left as they are.

    Raises:
        ValueError: no tower that is trained has transformer blocks.
    """
    trained = [
        tower for tower in (clip.image_encoder, clip.text_encoder) if any(p.requires_grad for p in tower.parameters())
    ]
    chosen = [tower for tower in trained if tower.supports_gradient_checkpointing]
    if not chosen:
        names = ", ".join(type(tower).__name__ for tower in trained) or "none that is trained"
        raise ValueError(f"gradient_checkpointing: expected a tower of transformer blocks, got {names}")
    for tower in chosen:
        # transformers 5.2x gave the method this name; before it was called gradient_checkpointing_enable
        enable = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def compile_towers(clip: CLIP) -> None:
    """Compiles each tower with torch.compile where it is called first, which takes minutes; the weights keep names."""
    for tower in (clip.image_encoder, clip.text_encoder):
        tower.compile()
