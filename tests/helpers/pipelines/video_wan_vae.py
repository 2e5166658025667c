"""Videos with Wan's decoder: Sana, SkyReels from an image, ChronoEdit, Lucy, Motif, Cosmos 2.5; and Ideogram 4."""

from types import SimpleNamespace

import diffusers as d
import numpy as np
import torch
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from helpers.pipelines import parts
from helpers.pipelines.new_dits import flux2_vae
from helpers.pipelines.parts import call, embeds, pil_image, texts
from helpers.pipelines.video import SKYREELS, TRANSFORMER, image_to_video, video_vae, wan
from helpers.pipelines.video_dits import MASKS, assemble, flow, video

FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def size(**inputs):
    return call(side=None, height=32, width=48, **inputs)


def wide(width=48):
    return pil_image(width).resize((width, 32))


def without_image_encoder(pipe, inputs):
    pipe.encode_image = lambda *args, **kwargs: embeds(1, 4, 8)
    return pipe, inputs


def sana(cls=d.SanaVideoPipeline, vae=video_vae, scheduler=None, **inputs):
    transformer = d.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    scheduler = scheduler or d.DPMSolverMultistepScheduler(**FLOW_SOLVER)
    pipe = assemble(cls, transformer, vae(), scheduler)
    text = {"negative_prompt": None, **texts(masks=MASKS)}
    return pipe, {**size(frames=9, use_resolution_binning=False, **text, **inputs), "width": 64}


def ltx2_vae():
    vae = d.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=2,
    )
    vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    vae.latents_std.copy_(torch.tensor([0.9, 1.1, 1.2, 0.8]))
    return parts.soften(vae)


def chronoedit(**inputs):
    config = {name: value for name, value in TRANSFORMER.items() if name != "out_channels"}
    transformer = d.ChronoEditTransformer3DModel(in_channels=12, out_channels=4, image_dim=8, **config)
    scheduler = d.UniPCMultistepScheduler(**FLOW_SOLVER)
    pipe = assemble(d.ChronoEditPipeline, transformer, video_vae(), scheduler)
    return without_image_encoder(pipe, size(image=wide(), **texts(), **{"num_frames": 5, **inputs}))


def lucy():
    return wan(d.LucyEditPipeline, 8, video=[pil_image(48).resize((48, 32))] * 5, num_frames=5)


def motif(cls=d.MotifVideoPipeline, **inputs):
    transformer = d.MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        text_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
    )
    guider = d.AdaptiveProjectedGuidance(2.0)
    pipe = assemble(cls, transformer, video_vae(), flow(shift=7.0), guider=guider)
    return pipe, size(num_frames=5, **texts(masks=MASKS), **inputs)


def resize(image, size, interpolation):
    return torch.nn.functional.interpolate(image, size)


def to_tensor(image):
    return torch.from_numpy(np.asarray(image) / 255).float().movedim(-1, 0)


def stand_in_for_torchvision():
    """Give Cosmos the two functions that it takes from torchvision, which need not be installed."""
    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize, to_tensor=to_tensor), InterpolationMode=SimpleNamespace(NEAREST=0)
    )
    for module in (transformer_cosmos, controlnet_cosmos):
        vars(module).setdefault("transforms", transforms)
    vars(pipeline_cosmos2_5_predict).setdefault("torchvision", SimpleNamespace(transforms=transforms))


class Unchecked:
    """In place of Cosmos's guardrail, whose library is not installed."""

    def to(self, device):
        return self

    def check_video_safety(self, frames):
        return frames


COSMOS = {
    "in_channels": 5,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "mlp_ratio": 2,
    "text_embed_dim": 8,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": "learnable",
}


def cosmos(**inputs):
    stand_in_for_torchvision()
    transformer = d.CosmosTransformer3DModel(concat_padding_mask=True, **COSMOS)
    scheduler = d.UniPCMultistepScheduler(**FLOW_SOLVER)
    pipe = assemble(d.Cosmos2_5_PredictBasePipeline, transformer, video_vae(), scheduler, safety_checker=Unchecked())
    return pipe, size(num_frames=9, **texts(), **inputs)


def cosmos_transfer():
    stand_in_for_torchvision()
    context = {"img_context_dim_in": 32, "img_context_dim_out": 32}
    transformer = d.CosmosTransformer3DModel(
        concat_padding_mask=True, controlnet_block_every_n=1, img_context_num_tokens=4, **context, **COSMOS
    )
    config = {name: COSMOS[name] for name in COSMOS if name not in ("in_channels", "out_channels", "num_layers")}
    controlnet = d.CosmosControlNetModel(
        n_controlnet_blocks=1,
        in_channels=6,
        latent_channels=6,
        model_channels=32,
        use_crossattn_projection=False,
        **context,
        **config,
    )
    pipe = assemble(
        d.Cosmos2_5_TransferPipeline,
        transformer,
        video_vae(),
        d.UniPCMultistepScheduler(**FLOW_SOLVER),
        controlnet=parts.awaken(controlnet),
        safety_checker=Unchecked(),
    )
    controls = [frame.resize((48, 32)) for frame in video(48, 5)]
    return pipe, size(controls=controls, num_frames=5, num_frames_per_chunk=5, **texts())


def ideogram():
    """Its text encoder's layers are tapped one by one; encoded texts take its place."""
    config = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "adaln_dim": 8,
        "llm_features_dim": 8,
        "mrope_section": (4, 2, 2),
    }
    pipe = assemble(
        d.Ideogram4Pipeline,
        d.Ideogram4Transformer2DModel(**config),
        flux2_vae(),
        flow(),
        unconditional_transformer=parts.awaken(d.Ideogram4Transformer2DModel(**config)),
    )

    def encode_prompt(prompt, grid_h, grid_w, max_sequence_length, device):
        features = torch.cat([embeds(1, max_sequence_length, 8), torch.zeros(1, grid_h * grid_w, 8)], 1)
        return features, *pipe._prepare_ids([max_sequence_length], grid_h, grid_w, max_sequence_length, device)

    pipe.encode_prompt = encode_prompt
    inputs = call(side=None, height=16, width=24, prompt="a cat", max_sequence_length=5)
    return pipe, {**inputs, "guidance_schedule": (3.0, 3.0, 2.0)}


PIPELINES = parts.seeded(
    {
        "SanaVideoPipeline": sana,
        "SanaVideoPipeline + LTX 2's decoder": lambda: sana(vae=ltx2_vae),
        "SanaImageToVideoPipeline": lambda: sana(d.SanaImageToVideoPipeline, scheduler=flow(), image=wide(64)),
        "SkyReelsV2ImageToVideoPipeline": lambda: without_image_encoder(
            *image_to_video(d.SkyReelsV2ImageToVideoPipeline, SKYREELS, config={"image_dim": 8})
        ),
        "ChronoEditPipeline": chronoedit,
        "ChronoEditPipeline + reasoning": lambda: chronoedit(
            num_frames=9, enable_temporal_reasoning=True, num_temporal_reasoning_steps=2
        ),
        "LucyEditPipeline": lucy,
        "MotifVideoPipeline": motif,
        "MotifVideoImage2VideoPipeline": lambda: motif(d.MotifVideoImage2VideoPipeline, image=wide(), prompt=None),
        "Cosmos2_5_PredictBasePipeline": cosmos,
        "Cosmos2_5_PredictBasePipeline + image": lambda: cosmos(image=wide()),
        "Cosmos2_5_TransferPipeline": cosmos_transfer,
        "Ideogram4Pipeline": ideogram,
    }
)

LAST_STEP = dict.fromkeys(PIPELINES, "frames may be given beside the latents")
SCALES = {
    **dict.fromkeys(("MotifVideoPipeline", "MotifVideoImage2VideoPipeline", "SanaVideoPipeline"), 1.0),
    "SkyReelsV2ImageToVideoPipeline": 0.1,  # at 1 its random network answers a shift by more than the shift
}
TOLERANCES = {"Cosmos2_5_TransferPipeline": 1 / 255}  # a check of its images rounds them
