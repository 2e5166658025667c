"""Models of random weights that are small enough to save, load and run in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

IMAGE_SIZE, CONTEXT = 32, 40


def letter_tokenizer() -> CLIPTokenizer:
    """One token a letter."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=CONTEXT)


def save_tiny_clip(
    folder: Path, seed: int = 0, tokenizer: CLIPTokenizer | None = None, eos_token_id: int | None = None
) -> Path:
    """Writes a transformers CLIP with its tokenizer (one token a letter by default) and image processor."""
    tokenizer = tokenizer or letter_tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos_token_id or tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vocabulary = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    config = CLIPConfig(
        text_config={**layers, **special, **vocabulary},
        vision_config={**layers, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():  # the stock initialisation leaves all embeddings alike
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                parameter.data += 0.02 * torch.randn_like(parameter)  # biases and norms must count too
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def save_tiny_pipeline(folder: Path, clip_folder: Path, seed: int = 0) -> Path:
    """Writes a stock StableDiffusionPipeline that draws 16 x 16 images with a tiny CLIP's tokenizer."""
    config = CLIPTextConfig(**CLIPConfig.from_pretrained(clip_folder).text_config.to_dict())
    levels = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 8)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        StableDiffusionPipeline(
            vae=AutoencoderKL(
                **levels,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            text_encoder=CLIPTextModel(config),
            tokenizer=AutoTokenizer.from_pretrained(clip_folder),
            unet=UNet2DConditionModel(
                **levels,
                sample_size=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=config.hidden_size,
                attention_head_dim=4,
            ),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder
