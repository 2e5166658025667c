"""Video pipelines with a UNet: motion modules in an image's UNet, and UNets of three dimensions."""

import diffusers as d
from helpers.pipelines import parts
from helpers.pipelines.parts import WIDTH, awaken, build, embeds, pil_image, texts

FRAMES = 3
DEEP = {
    "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
}


def animate(cls, config=None, adapter=None, text=None, pieces=None, **inputs):
    motion = d.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        **(adapter or {}),
    )
    pipe = build(
        cls,
        unet=awaken(parts.unet(**(config or {}))),
        motion_adapter=awaken(motion),
        vae=parts.vae(shift_factor=0.1),
        scheduler=parts.scheduler(beta_schedule="linear"),
        **(pieces or {}),
    )
    return pipe, several(cls, **(texts() if text is None else text), **inputs)


def several(cls, **inputs):
    """Three frames, where they are not those of a given video."""
    count = {} if "video" in inputs else {"num_frames": FRAMES}
    return parts.sized(cls, **count, **inputs)


def video():
    return [pil_image(seed=i) for i in range(FRAMES)]


def sparse_controlnet():
    return awaken(
        parts.unet(
            d.SparseControlNetModel,
            up=False,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            conditioning_embedding_out_channels=(4, 8),
            conditioning_channels=3,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            use_simplified_condition_embedding=False,
        )
    )


def animate_xl():
    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2}
    xl["projection_class_embeddings_input_dim"] = WIDTH + 6 * 2
    text = texts(pooled=WIDTH)
    return animate(d.AnimateDiffSDXLPipeline, xl, {"use_motion_mid_block": False}, text)


def pia():
    return animate(d.PIAPipeline, adapter={"conv_in_channels": 9}, image=pil_image(), strength=1.0)


def text_to_video(cls, **inputs):
    """It flattens its videos into frames before the scheduler."""
    unet = awaken(parts.unet(d.UNet3DConditionModel, **DEEP))
    pipe = build(cls, unet=unet, vae=parts.vae(shift_factor=0.1), scheduler=parts.scheduler())
    return pipe, several(cls, **texts(), **inputs)


def i2vgen():
    unet = parts.unet(d.I2VGenXLUNet, num_attention_heads=2, **DEEP)
    pipe = build(
        d.I2VGenXLPipeline,
        unet=awaken(unet),
        vae=parts.vae(shift_factor=0.1),
        scheduler=parts.scheduler(),
        image_encoder=parts.clip_vision(),
        feature_extractor=parts.clip_image_processor(),
    )
    return pipe, several(d.I2VGenXLPipeline, **texts(), image=pil_image(), target_fps=8)


def stable_video():
    """Frames stand before channels; its decoder is told how many belong together."""
    unet = d.UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=3 * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 2),
    )
    vae = d.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), scaling_factor=0.7
    )
    scheduler = parts.scheduler(
        d.EulerDiscreteScheduler,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    pipe = build(d.StableVideoDiffusionPipeline, unet=awaken(unet), vae=vae.eval(), scheduler=scheduler)
    pipe._encode_image = lambda *args: embeds(2, 1, WIDTH)
    return pipe, several(d.StableVideoDiffusionPipeline, image=pil_image())


PIPELINES = parts.seeded(
    {
        "AnimateDiffPipeline": lambda: animate(d.AnimateDiffPipeline),
        "AnimateDiffPAGPipeline": lambda: animate(d.AnimateDiffPAGPipeline),
        "AnimateDiffControlNetPipeline": lambda: animate(
            d.AnimateDiffControlNetPipeline, pieces={"controlnet": parts.controlnet()}, conditioning_frames=video()
        ),
        "AnimateDiffSparseControlNetPipeline": lambda: animate(
            d.AnimateDiffSparseControlNetPipeline,
            pieces={"controlnet": sparse_controlnet()},
            conditioning_frames=[pil_image()],
            controlnet_frame_indices=[0],
        ),
        "AnimateDiffVideoToVideoPipeline": lambda: animate(
            d.AnimateDiffVideoToVideoPipeline, video=video(), strength=0.8
        ),
        "AnimateDiffVideoToVideoControlNetPipeline": lambda: animate(
            d.AnimateDiffVideoToVideoControlNetPipeline,
            pieces={"controlnet": parts.controlnet()},
            video=video(),
            strength=0.8,
            conditioning_frames=video(),
        ),
        "AnimateDiffSDXLPipeline": animate_xl,
        "PIAPipeline": pia,
        "TextToVideoSDPipeline": lambda: text_to_video(d.TextToVideoSDPipeline),
        "VideoToVideoSDPipeline": lambda: text_to_video(d.VideoToVideoSDPipeline, video=video(), strength=0.8),
        "I2VGenXLPipeline": i2vgen,
        "StableVideoDiffusionPipeline": stable_video,
    }
)

#: Pipelines whose scheduler takes frames one by one.
LAST_STEP = dict.fromkeys(
    ("TextToVideoSDPipeline", "VideoToVideoSDPipeline", "I2VGenXLPipeline"), "its scheduler knows no videos"
)
