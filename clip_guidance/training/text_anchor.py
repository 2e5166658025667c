"""Keep what a denoiser reads while a text tower learns something new.

A denoiser reads the states of the text tower that it was trained on, and draws something else when they change. So the
tower is held to the states of that tower at the captions that denoisers are trained on, padded as pipelines pad them
(hints, Romero et al. 2015, arXiv:1412.6550, here with no map between the states):

    loss = mean over captions, tokens and channels of (state − anchored state)²

The states of a tower are normalised, so that the loss is near the share of their variance that changed. Texts of other
kinds, such as keywords without a name, are free to move.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip import CLIP, ModelError
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.data.dataset import DRAWING_PHRASES, Row, caption
from clip_guidance.towers import TransformerTextModel

EVERY = 4  # images of the batch to one caption whose states are kept


class TextAnchor:
    """A text tower that is only listened to; no module, so that neither checkpoints nor averages hold its weights.

    Args:
        anchor: The CLIP whose text tower the denoiser reads.
        clip: The CLIP that is trained; both have the same vocabulary and width.

    Raises:
        ModelError: The towers do not read the same tokens, or their states differ in shape; says which.
    """

    def __init__(self, anchor: DualEncoder, clip: CLIP):
        towers = [getattr(each, "text_encoder", each) for each in (anchor, clip)]
        for tower in towers:
            if not isinstance(tower, TransformerTextModel):
                raise ModelError(f"--text_anchor: expected two transformers of ours, got a {type(tower).__name__}")
        widths = [tower.config.hidden_size for tower in towers]
        if widths[0] != widths[1]:
            raise ModelError(f"--text_anchor: expected states of width {widths[1]}, got {widths[0]}")
        if anchor.tokenizer.get_vocab() != clip.tokenizer.get_vocab():
            raise ModelError("--text_anchor: its vocabulary is another one")
        self.tokenizer = clip.tokenizer
        self.tower = towers[0].text_model.to(clip.device).float().eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, object]) -> TextAnchor:
        """Return the same anchor: an average of the trained weights has no need of a copy."""
        return self

    def draw(self, rows: Sequence[Row], seed: str) -> Tensor:
        """Draw a caption of every fourth row, as a denoiser's training does, and tokenize them to (n, L)."""
        rng = random.Random(seed)
        captions = [caption(row, rng, DRAWING_PHRASES) for row in rows[::EVERY]]
        ids: Tensor = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return ids

    def __call__(self, clip: CLIP, input_ids: Tensor) -> Tensor:
        """Compute the loss, a scalar, at texts (n, L)."""
        with torch.no_grad():
            wanted = self.tower(input_ids, None).last_hidden_state
        # Not by the tower's own call, which may be compiled for captions of other lengths.
        found = clip.text_encoder.text_model(input_ids, None).last_hidden_state
        return F.mse_loss(found.float(), wanted.float())
