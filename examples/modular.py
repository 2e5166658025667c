"""Put a pipeline together from blocks of Modular Diffusers, with CLIP as its guider.

    python examples/modular.py rocket.png --prompt "a noto picture of a rocket"

The blocks are those of Stable Diffusion XL without its two text encoders, since a pipeline such as the packaged one, or
Stable Diffusion 1, reads one. A modular pipeline from the hub needs ``update_components(guider=...)`` alone.
"""

import argparse

import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, decoders, denoise

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompt", required=True, help="what is drawn")
    parser.add_argument("--scale", type=float, default=10.0, help="strength of CLIP guidance; 0 is none")
    parser.add_argument("--pipeline", default="emoji", help="pipeline with one text encoder, whose parts are taken")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    args = parser.parse_args()

    steps = {
        "input": before_denoise.StableDiffusionXLInputStep(),
        "set_timesteps": before_denoise.StableDiffusionXLSetTimestepsStep(),
        "prepare_latents": before_denoise.StableDiffusionXLPrepareLatentsStep(),
        "denoise": denoise.StableDiffusionXLDenoiseStep(),
        "decode": decoders.StableDiffusionXLDecodeStep(),
    }
    pipe = SequentialPipelineBlocks.from_blocks_dict(steps).init_pipeline()
    stock = cg.load_pipeline(args.pipeline, args.device)
    guidance = cg.CLIPGuidance(args.clip, args.prompt, args.scale, guider=ClassifierFreeGuidance(3.0))
    pipe.update_components(unet=stock.unet, vae=stock.vae, scheduler=stock.scheduler, guider=guidance)

    inputs = {"num_inference_steps": args.steps, "generator": torch.manual_seed(0)}
    inputs |= dict.fromkeys(("height", "width"), stock.unet.config.sample_size * stock.vae_scale_factor)
    for name, embeds in zip(("", "negative_"), stock.encode_prompt(args.prompt, args.device, 1, True), strict=True):
        inputs |= {f"{name}prompt_embeds": embeds, f"{name}pooled_prompt_embeds": embeds[:, 0]}  # unread
    pipe(**inputs, output="images")[0].save(args.output)
    print(f"wrote {args.output}, steered at {len(guidance.report.steps)} of {args.steps} steps")


if __name__ == "__main__":
    main()
