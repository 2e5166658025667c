"""CLIP: an image tower and a text tower that meet in one space; loaded, embedded with, saved."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoTokenizer, CLIPTokenizer

from clip_guidance.clip.config import CLIPConfig as CLIPConfig
from clip_guidance.clip.dual_encoder import DualEncoder as DualEncoder
from clip_guidance.clip.hub import ModelError as ModelError
from clip_guidance.clip.in_memory import as_clip as as_clip
from clip_guidance.clip.model import CLIP as CLIP
from clip_guidance.clip.output import CLIPOutput as CLIPOutput
from clip_guidance.clip.tokenizer import PromptTruncatedWarning as PromptTruncatedWarning

__all__ = ["CLIP", "CLIPConfig", "CLIPOutput", "DualEncoder", "ModelError", "PromptTruncatedWarning"]

AutoConfig.register(CLIPConfig.model_type, CLIPConfig, exist_ok=True)
AutoModel.register(CLIPConfig, CLIP, exist_ok=True)
AutoModelForZeroShotImageClassification.register(CLIPConfig, CLIP, exist_ok=True)
AutoTokenizer.register(CLIPConfig, fast_tokenizer_class=CLIPTokenizer, exist_ok=True)
