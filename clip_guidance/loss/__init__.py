"""Contrastive losses: the plain reference, the same in tiles, SigLIP's sigmoid loss, and sums over processes."""

from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE as MAX_LOGIT_SCALE
from clip_guidance.loss.contrastive import contrastive_loss as contrastive_loss
from clip_guidance.loss.contrastive import similarity_logits as similarity_logits
from clip_guidance.loss.distributed import ProcessGroup as ProcessGroup
from clip_guidance.loss.sigmoid import INITIAL_BIAS as INITIAL_BIAS
from clip_guidance.loss.sigmoid import sigmoid_loss as sigmoid_loss
from clip_guidance.loss.supervised import supervised_contrastive_loss as supervised_contrastive_loss
from clip_guidance.loss.tiled import TILE as TILE
from clip_guidance.loss.tiled import tiled_contrastive_loss as tiled_contrastive_loss

__all__ = [
    "contrastive_loss",
    "tiled_contrastive_loss",
    "sigmoid_loss",
    "supervised_contrastive_loss",
    "similarity_logits",
    "MAX_LOGIT_SCALE",
    "INITIAL_BIAS",
    "TILE",
    "ProcessGroup",
]
