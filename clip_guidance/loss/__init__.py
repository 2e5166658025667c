"""The symmetric contrastive loss: the reference, in tiles, with a sigmoid, and over several processes."""

from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE as MAX_LOGIT_SCALE
from clip_guidance.loss.contrastive import contrastive_loss as contrastive_loss
from clip_guidance.loss.contrastive import similarity_logits as similarity_logits
from clip_guidance.loss.sigmoid import sigmoid_loss as sigmoid_loss
from clip_guidance.loss.tiled import tiled_contrastive_loss as tiled_contrastive_loss

__all__ = ["MAX_LOGIT_SCALE", "contrastive_loss", "sigmoid_loss", "similarity_logits", "tiled_contrastive_loss"]
