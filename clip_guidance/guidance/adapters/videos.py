"""The rows of the pipelines that make videos.

Of a video the reward reads all frames, or those that :class:`~clip_guidance.guidance.decoding.Decoding` chooses, and is
the mean over them.
"""

from dataclasses import replace
from functools import partial

from clip_guidance.guidance.adapters import layouts, masks
from clip_guidance.guidance.adapters import video_layouts as videos
from clip_guidance.guidance.adapters.adapter import Adapter

FRAMES = Adapter("unet", denormalise=layouts.by_scale, decode=layouts.frames_decode, is_video=True)
VIDEO = Adapter("transformer", is_video=True)
SCALED_VIDEO = replace(VIDEO, denormalise=layouts.by_scale)
WAN = replace(VIDEO, denormalise=layouts.by_statistics)
LTX = replace(VIDEO, unpack=videos.video_tokens, denormalise=videos.by_buffers, decode=videos.timestep_decode)
COGVIDEOX = replace(SCALED_VIDEO, unpack=videos.without_padding)
SANA_VIDEO = replace(VIDEO, denormalise=videos.by_kind)
HUNYUAN_FROM_IMAGE = replace(SCALED_VIDEO, unpack=videos.after_given_frame)
#: Hunyuan's image to video in its older way: the image's latents are more channels, and a frame before the first.
HUNYUAN_CONCATENATED = replace(SCALED_VIDEO, decode=videos.later_frames_decode)

#: Each row and the classes to which it applies.
VIDEO_FAMILIES: list[tuple[Adapter, str]] = [
    (
        FRAMES,
        "AnimateDiffPipeline AnimateDiffSDXLPipeline AnimateDiffPAGPipeline AnimateDiffControlNetPipeline "
        "AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoPipeline "
        "AnimateDiffVideoToVideoControlNetPipeline",
    ),
    (replace(FRAMES, framewise=True), "TextToVideoSDPipeline VideoToVideoSDPipeline I2VGenXLPipeline"),
    (replace(FRAMES, made_anew=masks.everywhere), "PIAPipeline"),
    (replace(FRAMES, unpack=layouts.frames_first, decode=layouts.temporal_decode), "StableVideoDiffusionPipeline"),
    (
        WAN,
        "WanPipeline WanVideoToVideoPipeline SkyReelsV2Pipeline SkyReelsV2ImageToVideoPipeline WanModularPipeline "
        "LucyEditPipeline MotifVideoPipeline MotifVideoImage2VideoPipeline",
    ),
    (
        replace(
            WAN,
            unpack=videos.with_given_frame,
            made_anew=partial(masks.over_latents, name="first_frame_mask"),
        ),
        "WanImageToVideoPipeline",
    ),
    (
        replace(WAN, made_anew=partial(masks.over_latents, name="cond_mask", repainted=0.0)),
        "Cosmos2_5_PredictBasePipeline Cosmos2_5_TransferPipeline",
    ),
    (replace(WAN, unpack=videos.edited), "ChronoEditPipeline"),
    (LTX, "LTXPipeline"),
    (replace(LTX, unpack=videos.after_given_frame_of_tokens), "LTXImageToVideoPipeline LTXModularPipeline"),
    (
        COGVIDEOX,
        "CogVideoXPipeline CogVideoXFunControlPipeline CogVideoXImageToVideoPipeline CogVideoXVideoToVideoPipeline "
        "ConsisIDPipeline",
    ),
    (
        SCALED_VIDEO,
        "HunyuanVideoPipeline HunyuanSkyreelsImageToVideoPipeline HunyuanVideo15Pipeline "
        "HunyuanVideo15ImageToVideoPipeline HunyuanVideo15ModularPipeline EasyAnimatePipeline "
        "EasyAnimateInpaintPipeline",
    ),
    (HUNYUAN_FROM_IMAGE, "HunyuanVideoImageToVideoPipeline"),
    (VIDEO, "MochiPipeline"),
    (SANA_VIDEO, "SanaVideoPipeline"),
    (replace(SANA_VIDEO, unpack=videos.after_given_frame), "SanaImageToVideoPipeline"),
    (replace(SCALED_VIDEO, unpack=videos.channels_last), "Kandinsky5T2VPipeline"),
    (replace(SCALED_VIDEO, unpack=videos.after_given_frame_channels_last), "Kandinsky5I2VPipeline"),
    (replace(SCALED_VIDEO, decode=videos.chunked_decode), "LattePipeline"),
    (replace(SCALED_VIDEO, decode=videos.frames_first_decode), "AllegroPipeline"),
]
