"""CLIP: an image tower and a text tower that meet in one space; loaded, embedded with, saved."""

from clip_guidance.clip.config import CLIPConfig as CLIPConfig
from clip_guidance.clip.hub import ModelError as ModelError
from clip_guidance.clip.model import CLIP as CLIP
from clip_guidance.clip.model import CLIPOutput as CLIPOutput
from clip_guidance.clip.tokenizer import PromptTruncatedWarning as PromptTruncatedWarning

__all__ = ["CLIP", "CLIPConfig", "CLIPOutput", "ModelError", "PromptTruncatedWarning"]
