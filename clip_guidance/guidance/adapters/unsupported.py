"""Pipelines and schedulers of diffusers that cannot be guided, or not in every way.

Guidance needs a pipeline that calls ``scheduler.step(model_output, timestep, sample)`` at noise levels that the
scheduler knows, and, for rewards on images, a differentiable map from samples to images. It needs a scheduler with a
step from (model_output, timestep, sample), a continuous sample x = α·x₀ + σ·ε, and a model output on which x̂₀
depends linearly. Each unsupported class lacks one of these. A reason completes a sentence about the class, "it ...".
"""


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    """Turn {reason: names} into {name: reason}."""
    return {name: reason for reason, names in groups.items() for name in names.split()}


#: Pipelines of diffusers that cannot be guided, with the reason.
UNSUPPORTED_PIPELINES: dict[str, str] = _by_name(
    {
        "its samples are discrete tokens, which cannot be shifted": "AmusedPipeline AmusedImg2ImgPipeline "
        "AmusedInpaintPipeline VQDiffusionPipeline DiffusionGemmaPipeline LLaDA2Pipeline",
        "it turns images into embeddings of a prompt, without denoising": "FluxPriorReduxPipeline",
        "it enlarges latents without denoising": "LTXLatentUpsamplePipeline LTX2LatentUpsamplePipeline",
        "it decodes latents; the video is settled before it runs": "LTX2VideoDiffusionDecodePipeline",
        "it runs two pipelines; guide its `generation_pipe`": "VisualClozePipeline",
        "it runs two pipelines; guide its `decoder_pipe`": "KandinskyCombinedPipeline KandinskyImg2ImgCombinedPipeline "
        "KandinskyInpaintCombinedPipeline KandinskyV22CombinedPipeline KandinskyV22Img2ImgCombinedPipeline "
        "KandinskyV22InpaintCombinedPipeline WuerstchenCombinedPipeline StableCascadeCombinedPipeline",
        "it runs other pipelines, made anew for each call; make and guide one of those, such as "
        "VersatileDiffusionTextToImagePipeline": "VersatileDiffusionPipeline",
        "diffusers cannot run it: its attention takes no mask": "VersatileDiffusionDualGuidedPipeline",
        "its samples do not lie at the noise levels of its own scheduler": "Cosmos2TextToImagePipeline "
        "Cosmos2VideoToWorldPipeline",
        "it takes two scheduler steps for each step that it means": "CosmosTextToWorldPipeline "
        "CosmosVideoToWorldPipeline",
        "it takes its steps window by window, with copies of its scheduler's state": "StableDiffusionPanoramaPipeline",
        "it takes some of its steps with a copy of its scheduler": "TextToVideoZeroPipeline "
        "TextToVideoZeroSDXLPipeline",
        "it takes many steps at once, past `scheduler.step`": "StableDiffusionParadigmsPipeline",
        "its first of two runs must give back the image that is to be edited": "StableDiffusionPix2PixZeroPipeline",
        "it walks back and forth in time; inpaint with another pipeline": "RePaintPipeline",
        "its scheduler has no step(model_output, timestep, sample)": "KarrasVePipeline ScoreSdeVePipeline",
        "its frames or tokens stand at noise levels of their own": "LTXConditionPipeline SanaWMPipeline "
        "SkyReelsV2DiffusionForcingPipeline SkyReelsV2DiffusionForcingImageToVideoPipeline "
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        "copies of one scheduler step images and sound together": "LTX2Pipeline LTX2ConditionPipeline "
        "LTX2DFRPipeline LTX2DFRTemporalRefinePipeline LTX2HDRPipeline LTX2ImageToVideoPipeline "
        "LTX2InContextPipeline LTX2ModularPipeline Cosmos3OmniPipeline Cosmos3OmniModularPipeline "
        "Kandinsky6TI2VAPipeline MiniMaxH3ModularPipeline",
        "its model predicts the mean velocity over a step, which implies no x₀": "AnyFlowPipeline AnyFlowFARPipeline",
        "its model predicts a grid of clean samples for each step, not one": "Kandinsky6SRPipeline",
        "it changes resolution from stage to stage, with noise levels of its own in each": "HeliosPipeline "
        "HeliosPyramidPipeline HeliosModularPipeline",
        "it takes its steps without a scheduler": "EchoModularPipeline",
        "its networks are ONNX graphs, through which no gradient passes": "OnnxStableDiffusionPipeline "
        "OnnxStableDiffusionImg2ImgPipeline OnnxStableDiffusionInpaintPipeline "
        "OnnxStableDiffusionInpaintPipelineLegacy OnnxStableDiffusionUpscalePipeline StableDiffusionOnnxPipeline",
        "its samples are protein structures": "RFD4ProteinaPipeline",
    }
)

#: Pipelines of diffusers that only a reward on latents can guide, with the reason.
LATENT_ONLY: dict[str, str] = _by_name(
    {
        "its samples are sound": "AceStepPipeline LongCatAudioDiTPipeline StableAudioPipeline StableAudio3Pipeline "
        "StableAudio3AudioToAudioPipeline StableAudio3InpaintPipeline MiniMaxMusic3ModularPipeline AudioLDMPipeline "
        "AudioLDM2Pipeline MusicLDMPipeline DanceDiffusionPipeline AudioDiffusionPipeline "
        "SpectrogramDiffusionPipeline",
        "its samples are embeddings of images, which another pipeline turns into images": "KandinskyPriorPipeline "
        "KandinskyV22PriorPipeline KandinskyV22PriorEmb2EmbPipeline WuerstchenPriorPipeline "
        "StableCascadePriorPipeline",
        "its samples are the weights of a scene in three dimensions": "ShapEPipeline ShapEImg2ImgPipeline",
        "its samples are maps of depth, of normals or of materials": "MarigoldDepthPipeline MarigoldNormalsPipeline "
        "MarigoldIntrinsicsPipeline",
        "it makes several layers of an image at once": "QwenImageLayeredPipeline QwenImageLayeredModularPipeline",
        "its samples hold other images beside the new one": "JoyImageEditPipeline JoyImageEditPlusPipeline "
        "VisualClozeGenerationPipeline",
        "its samples are pixels under more noise than its scheduler knows": "PRXPixelPipeline",
        "it works at a size of its own, which it does not name `height` and `width`": "LongCatImageEditPipeline",
        "its frames of reference come before the others": "WanVACEPipeline Wan22VaceModularPipeline "
        "WanAnimatePipeline WanAnimate2ModularPipeline",
        "it makes its video in sections, and decodes each with those before it": "HunyuanVideoFramepackPipeline",
        "it makes its video window by window, and blends the windows' latents": "LTXI2VLongMultiPromptPipeline",
        "diffusers cannot decode its samples either: its method for that is missing": "EasyAnimateControlPipeline",
    }
)

#: Pipelines of diffusers that mode "exact" cannot differentiate, with the reason.
NO_EXACT: dict[str, str] = _by_name(
    {
        "it mixes the noisy sample into the model output by itself": "StableDiffusionLatentUpscalePipeline",
        "its denoiser reads the sample in parts": "UniDiffuserPipeline",
        "its denoiser reads two different samples at once": "CycleDiffusionPipeline",
    }
)

_TOKENS = "its samples are discrete tokens, which cannot be shifted"
_INVERSE = "it walks from the image to the noise"
_NO_STEP = "it has no step(model_output, timestep, sample)"
_STAGES = "it changes resolution from stage to stage, with noise levels of its own in each"

#: Schedulers of diffusers that cannot be guided, with the reason.
UNSUPPORTED_SCHEDULERS = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "KarrasVeScheduler": _NO_STEP,
    "ScoreSdeVeScheduler": _NO_STEP,
    "ScoreSdeVpScheduler": _NO_STEP,
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "ConsistencyDecoderScheduler": "it decodes latents; the image is settled before it runs",
    "FlowMapEulerDiscreteScheduler": "its model predicts the mean velocity over a step, which implies no x₀",
    "PiflowScheduler": "its model predicts a grid of clean samples for each step, not one",
    "RePaintScheduler": "it walks back and forth in time; inpaint with another scheduler",
    "RFD4ProteinaScheduler": "its samples are protein structures",
}
