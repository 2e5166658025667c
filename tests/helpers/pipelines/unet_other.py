"""Other pipelines with a UNet: of several stages, of vector-quantised latents, of images and more at once.

Many give numbers in [0, 1] as arrays alone, and as tensors numbers in [-1, 1].
"""

import diffusers as d
import torch
from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserModel, UniDiffuserTextDecoder
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt
from helpers.pipelines import parts
from helpers.pipelines.parts import WIDTH, awaken, build, embeds, image, pil_image, pil_mask, texts

DDIM = d.DDIMScheduler(clip_sample=False)
ARRAYS = {"output_type": "np"}
PROMPT = {"prompt": "a cat"}  # for those that take no embeddings


def movq(blocks=2):
    """Its normalisation by the latents divides channels into 32 groups."""
    return parts.vq(blocks, block_out_channels=(32,) * blocks, norm_type="spatial")


def kandinsky(cls, kind, scheduler=None, blocks=2, channels=4, **inputs):
    """Kandinsky 2, whose UNet predicts a variance too."""
    projected = {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": WIDTH}
    if kind == "text_image":
        projected = {"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": WIDTH}
    unet = parts.unet(in_channels=channels, out_channels=8, addition_embed_type=kind, **projected)
    pipe = build(
        cls,
        unet=awaken(unet),
        movq=movq(blocks),
        scheduler=scheduler or d.DDPMScheduler(variance_type="learned_range"),
    )
    if kind == "text_image":
        text = (embeds(2, WIDTH), embeds(2, 5, WIDTH), torch.ones(2, 5, dtype=torch.bool))
        pipe._encode_prompt = lambda *args, **kwargs: text  # it takes no embeddings
        inputs |= PROMPT
    found = {"image_embeds": embeds(1, WIDTH), "negative_image_embeds": embeds(1, WIDTH, seed=3)}
    return pipe, parts.call(side=4 * 2**blocks, **found, **ARRAYS, **inputs)


def repainted(side=parts.SIDE):
    return {"image": pil_image(side), "mask_image": pil_mask(side)}


def kandinsky3(cls, **inputs):
    """Its decoder enlarges by 8."""
    unet = d.Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 8, 8, 8),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
    )
    masks = {"attention_mask": torch.ones(1, 5), "negative_attention_mask": torch.ones(1, 5)}
    pipe = build(cls, unet=awaken(unet), movq=movq(blocks=4), scheduler=d.DDPMScheduler())
    return pipe, parts.sized(cls, **{**inputs, **texts(), **masks, **ARRAYS})


def paella():
    """Its images lie in [0, 1]."""
    vqgan = PaellaVQModel(levels=1, bottleneck_blocks=1, num_vq_embeddings=8, embed_dim=8).eval()
    vqgan.out_block[0].weight.data *= 0.1
    vqgan.out_block[0].bias.data += 0.5
    return vqgan


def wuerstchen():
    decoder = WuerstchenDiffNeXt(
        c_r=8,
        c_cond=8,
        c_hidden=[8, 16],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=WIDTH,
    )
    decoder = awaken(decoder)
    # It calls its input less a sample the noise, over at most 0.999: too little where σ is larger than that.
    decoder.clf[1].weight.data *= 0.1
    decoder.clf[1].bias.data[16:] += 10
    return two_stages(d.WuerstchenDecoderPipeline, decoder, timesteps=[0.8, 0.5, 0.2, 0.0], **PROMPT)


def cascade():
    decoder = d.models.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=8,
        block_out_channels=(8, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=WIDTH,
        effnet_in_channels=4,
    )
    text = {name.replace("pooled_prompt_embeds", "prompt_embeds_pooled"): value for name, value in texts().items()}
    text |= {f"{sign}prompt_embeds_pooled": embeds(1, 1, WIDTH, seed=8) for sign in ("", "negative_")}
    return two_stages(d.StableCascadeDecoderPipeline, awaken(decoder), guidance_scale=2.0, **text)


def two_stages(cls, decoder, **inputs):
    """The second stage, from the embedding of an image."""
    pipe = build(
        cls,
        decoder=decoder,
        vqgan=paella(),
        scheduler=d.DDPMWuerstchenScheduler(),
        text_encoder=parts.clip_text(),
        tokenizer=parts.clip_tokenizer(),
        latent_dim_scale=4.0,
    )
    return pipe, parts.sized(cls, image_embeddings=embeds(1, 4, 2, 2), **inputs)


def latent_diffusion(vqvae):
    """Its decoder enlarges by 8, and its tokenizer pads to 77."""
    pipe = build(
        d.LDMTextToImagePipeline,
        vqvae=vqvae,
        bert=parts.clip_text(max_position_embeddings=77),
        tokenizer=parts.clip_tokenizer(),
        unet=awaken(parts.unet()),
        scheduler=parts.scheduler(),
    )
    return pipe, parts.call(side=64, guidance_scale=2.0, **PROMPT)


def latent_diffusion_unconditional():
    parts_of = {
        "vqvae": parts.vq(scaling_factor=0.7),
        "unet": parts.plain_unet(4, 4, 8),
        "scheduler": parts.scheduler(),
    }
    return build(d.LDMPipeline, **parts_of), parts.sized(d.LDMPipeline, **ARRAYS)


def latent_super_resolution():
    vqvae = parts.vq(latent_channels=3, vq_embed_dim=3, num_vq_embeddings=500)
    pipe = build(d.LDMSuperResolutionPipeline, vqvae=vqvae, unet=parts.plain_unet(6, 3), scheduler=parts.scheduler())
    return pipe, parts.sized(d.LDMSuperResolutionPipeline, image=image())


def ldm3d():
    vae = parts.vae(in_channels=6, out_channels=6)
    unet = awaken(parts.unet())
    pipe = build(
        d.StableDiffusionLDM3DPipeline, vae=vae, unet=unet, scheduler=parts.scheduler(), requires_safety_checker=False
    )
    return pipe, parts.call(**texts(), **ARRAYS)


def unidiffuser(**inputs):
    unet = UniDiffuserModel(
        text_dim=WIDTH,
        clip_img_dim=WIDTH,
        num_text_tokens=12,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        norm_num_groups=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        use_timestep_embedding=False,
        use_patch_pos_embed=False,
        block_type="unidiffuser",
        norm_type="layer_norm",
        pre_layer_norm=False,
        use_data_type_embedding=False,
    )
    decoder = UniDiffuserTextDecoder(
        prefix_length=12, prefix_inner_dim=WIDTH, vocab_size=54, n_positions=24, n_embd=WIDTH, n_layer=1, n_head=2
    )
    pipe = build(
        d.UniDiffuserPipeline,
        unet=awaken(unet),
        vae=parts.vae(),
        scheduler=parts.scheduler(),
        text_encoder=parts.clip_text(),
        text_decoder=decoder.eval(),
        image_encoder=parts.clip_vision(),
    )
    return pipe, parts.call(**texts(12), **inputs)


def versatile(cls, **inputs):
    """Its encoder of prompts is replaced."""
    held = {"image_unet": awaken(parts.unet()), "vae": parts.vae(), "scheduler": parts.scheduler()}
    pipe = build(cls, **held)
    pipe._encode_prompt = lambda *args: embeds(2, 5, WIDTH)
    return pipe, parts.call(**inputs)


PIPELINES = parts.seeded(
    {
        "KandinskyPipeline": lambda: kandinsky(d.KandinskyPipeline, "text_image"),
        "KandinskyImg2ImgPipeline": lambda: kandinsky(
            d.KandinskyImg2ImgPipeline, "text_image", image=pil_image(), strength=0.8
        ),
        "KandinskyInpaintPipeline": lambda: kandinsky(
            d.KandinskyInpaintPipeline, "text_image", DDIM, channels=9, **repainted()
        ),
        "KandinskyV22Pipeline": lambda: kandinsky(d.KandinskyV22Pipeline, "image"),
        "KandinskyV22Img2ImgPipeline": lambda: kandinsky(
            d.KandinskyV22Img2ImgPipeline, "image", image=pil_image(), strength=0.8
        ),
        "KandinskyV22InpaintPipeline": lambda: kandinsky(
            d.KandinskyV22InpaintPipeline, "image", channels=9, **repainted()
        ),
        "KandinskyV22ControlnetPipeline": lambda: kandinsky(
            d.KandinskyV22ControlnetPipeline, "image_hint", blocks=4, channels=8, hint=image(64)
        ),
        "KandinskyV22ControlnetImg2ImgPipeline": lambda: kandinsky(
            d.KandinskyV22ControlnetImg2ImgPipeline,
            "image_hint",
            blocks=4,
            channels=8,
            hint=image(64),
            image=pil_image(64),
            strength=0.8,
        ),
        "Kandinsky3Pipeline": lambda: kandinsky3(d.Kandinsky3Pipeline, side=64),
        "Kandinsky3Img2ImgPipeline": lambda: kandinsky3(
            d.Kandinsky3Img2ImgPipeline, image=pil_image(64), strength=0.8
        ),
        "WuerstchenDecoderPipeline": wuerstchen,
        "StableCascadeDecoderPipeline": cascade,
        "LDMTextToImagePipeline": lambda: latent_diffusion(parts.vae(blocks=4)),
        "LDMPipeline": latent_diffusion_unconditional,
        "LDMSuperResolutionPipeline": latent_super_resolution,
        "StableDiffusionLDM3DPipeline": ldm3d,
        "UniDiffuserPipeline": unidiffuser,
        "VersatileDiffusionTextToImagePipeline": lambda: versatile(d.VersatileDiffusionTextToImagePipeline, **PROMPT),
        "VersatileDiffusionImageVariationPipeline": lambda: versatile(
            d.VersatileDiffusionImageVariationPipeline, image=pil_image()
        ),
    }
)

#: Why a pipeline's latents cannot be asked for by ``output_type="latent"``.
NO_LATENTS = {key: "it has no such output" for key in PIPELINES if key.startswith(("LDM", "KandinskyV22Con"))}
NO_LATENTS |= dict.fromkeys(
    ("KandinskyPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline", "StableDiffusionLDM3DPipeline"),
    "it has no such output",
)
NO_LATENTS["UniDiffuserPipeline"] = "it returns them unpacked"

#: Why a pipeline cannot be guided in mode "exact".
NO_EXACT = {"UniDiffuserPipeline": "its denoiser reads the sample in parts"}
