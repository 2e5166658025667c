"""Convert CLIPs of open_clip to ours and back: the architecture is that of ``transformers``, so weights are renamed.

open_clip (https://github.com/mlfoundations/open_clip) describes a model by ``open_clip_config.json``. What is converted
here are its own vision and text transformers, as OpenAI, LAION, DataComp, DFN and MetaCLIP trained them. It keeps the
queries, keys and values of a layer in one matrix, and multiplies by its projections from the right.
"""

from clip_guidance.clip.open_clip.config import describe_config as describe_config
from clip_guidance.clip.open_clip.config import describe_weights as describe_weights
from clip_guidance.clip.open_clip.weights import as_open_clip as as_open_clip
from clip_guidance.clip.open_clip.weights import convert_open_clip as convert_open_clip

__all__ = ["as_open_clip", "convert_open_clip", "describe_config", "describe_weights"]
