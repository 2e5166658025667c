"""Parts of tiny random pipelines: images of 16 x 16, latents of 8 x 8, text of width 8."""

import functools
import inspect

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetXSAdapter,
    DDIMScheduler,
    T2IAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

SIDE = 16  # of an image, in pixels
WIDTH = 8  # of a text encoder
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image(side=SIDE, seed=1):
    """A random image (1, 3, H, W) in [0, 1]."""
    return torch.rand(1, 3, side, side, generator=generator(seed))


def pil_image(side=SIDE, seed=1):
    return Image.fromarray((image(side, seed)[0].permute(1, 2, 0) * 255).byte().numpy())


def mask(side=SIDE):
    """1, to be painted anew, in the right half, (1, 1, H, W)."""
    right = torch.zeros(1, 1, side, side)
    right[..., side // 2 :] = 1
    return right


def pil_mask(side=SIDE):
    return Image.fromarray((mask(side)[0, 0] * 255).byte().numpy())


def scheduler(cls=DDIMScheduler, **config):
    """With the betas of Stable Diffusion's own scheduler_config.json."""
    if cls is DDIMScheduler:
        config = {"clip_sample": False, "steps_offset": 1, **config}
    return cls(**{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **config})


def clip_tokenizer():
    """One token a letter."""
    vocab = {chr(c) + end: i for i, (c, end) in enumerate((c, e) for c in range(97, 123) for e in ("", "</w>"))}
    vocab.update({token: len(vocab) + i for i, token in enumerate(_SPECIAL)})
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)


def clip_text(width=WIDTH, projection=False, **config):
    config = {
        "vocab_size": 54,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "projection_dim": width,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
        **config,
    }
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**config)).eval()


def clip_vision_config(width=WIDTH):
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=width,
    )


def clip_vision(width=WIDTH):
    return CLIPVisionModelWithProjection(clip_vision_config(width)).eval()


def clip_image_processor():
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def vae(blocks=2, channels=4, scale=0.7, **config):
    """A decoder from latents that are 2 ** (blocks - 1) times smaller, whose images lie inside [0, 1]."""
    config = {
        "block_out_channels": (4, 8, 8, 8)[:blocks],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "scaling_factor": scale,
        **config,
    }
    return soften(AutoencoderKL(**config))


def vq(blocks=2, **config):
    config = {
        "block_out_channels": (4, 8, 8, 8)[:blocks],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 12,
        "vq_embed_dim": 4,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        **config,
    }
    return soften(VQModel(**config))


def soften(autoencoder, scale=0.2):
    """Keep images inside [0, 1], where nothing is clipped."""
    last = autoencoder.decoder.conv_out
    getattr(last, "conv", last).weight.data *= scale
    return autoencoder.eval()


def awaken(module, scale=0.1):
    """Give random weights to the layers that start as zeros, lest the module does nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data = scale * torch.randn(parameter.shape)
    return module.eval()


def unet(cls=UNet2DConditionModel, up=True, **config):
    """Two levels, with attention to the text on the lower one."""
    if up:
        config = {"sample_size": 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **config}
    config = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        **config,
    }
    return cls(**config).eval()


def plain_unet(channels=3, out=3, side=SIDE):
    """A UNet without a prompt."""
    return awaken(
        UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=out,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(cls, **parts):
    """A pipeline of the given parts; all others are None."""
    names = [name for name, p in inspect.signature(cls.__init__).parameters.items() if p.default is p.empty]
    return quiet(cls(**{**{name: None for name in names if name != "self"}, **parts}))


def embeds(*shape, seed=2):
    """In place of an encoded text: guidance acts on the denoiser, the scheduler and the decoder alone."""
    return torch.randn(*shape, generator=generator(seed))


def texts(length=5, width=WIDTH, masks=(), pooled=None):
    """Embeddings of a prompt and of a negative prompt, and their masks or pooled forms, by argument name."""
    found = {"prompt_embeds": embeds(1, length, width), "negative_prompt_embeds": embeds(1, length, width, seed=3)}
    for name in masks:
        found[name] = torch.ones(1, length, dtype=torch.long)
    if pooled is not None:
        found["pooled_prompt_embeds"] = embeds(1, pooled, seed=4)
        found["negative_pooled_prompt_embeds"] = embeds(1, pooled, seed=5)
    return found


def call(steps=3, side=SIDE, **kwargs):
    """Arguments of a run; ``generator`` is to be seeded anew before each."""
    size = {} if side is None else {"height": side, "width": side}
    return {"num_inference_steps": steps, "output_type": "pt", "generator": generator(), **size, **kwargs}


def sized(cls, **inputs):
    """Arguments of a run of ``cls``, with height and width where it takes them."""
    takes = inspect.signature(cls.__call__).parameters
    return call(**({} if "height" in takes else {"side": None}), **inputs)


def seeded(builders):
    """The builders, each of which starts from the same random numbers."""

    def from_seed(builder):
        torch.manual_seed(0)
        return builder()

    return {key: functools.partial(from_seed, builder) for key, builder in builders.items()}


def controlnet(cls=ControlNetModel, **config):
    """To the UNet of :func:`unet`."""
    return awaken(unet(cls, up=False, conditioning_embedding_out_channels=(4, 8), **config))


def controlnet_xs(**config):
    """To the UNet of :func:`unet` with two layers a block, the fewest that it fits."""
    config = {
        "block_out_channels": (4, 8),
        "base_block_out_channels": (8, 16),
        "conditioning_embedding_out_channels": (4, 8),
        "num_attention_heads": 1,
        "max_norm_num_groups": 4,
        "use_linear_projection": False,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "sample_size": 8,
        **config,
    }
    return awaken(ControlNetXSAdapter(**config))


#: Blocks of a UNet to which :func:`t2i_adapter` adds: with attention on the upper level.
T2I_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def t2i_adapter():
    return awaken(T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2))


def ip_adapter(unet, tokens=4):
    """Load random weights of the smallest kind of image prompt adapter, and make the pipeline's input for it."""
    width = unet.config.cross_attention_dim
    weights = {}
    for i, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        weights |= {f"{2 * i + 1}.to_{kind}_ip.weight": embeds(hidden, width, seed=i) for kind in "kv"}
    projection = {"proj.weight": embeds(tokens * width, width), "proj.bias": torch.zeros(tokens * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    return {"ip_adapter_image_embeds": [embeds(2, 1, width, seed=7)]}  # negative and positive
