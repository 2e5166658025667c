"""Steer by a reward of your own, here the nearness to a colour, together with CLIP.

python examples/custom_reward.py blue.png --prompt "a noto picture of an apple" --colour 0.2 0.4 1.0
"""

import argparse

import torch
from torch import Tensor

import clip_guidance as cg
from clip_guidance.rewards import as_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompt", required=True, help="what the pipeline draws, and what CLIP steers towards")
    parser.add_argument("--colour", nargs=3, type=float, default=(0.2, 0.4, 1.0), help="red, green, blue in [0, 1]")
    parser.add_argument("--colour-scale", type=float, default=200.0, help="strength of the colour")
    parser.add_argument("--clip-scale", type=float, default=10.0, help="strength of CLIP")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    args = parser.parse_args()

    def nearness(images: Tensor) -> Tensor:
        """Of images (B, 3, H, W) in [0, 1] one number each, which steering raises; gradients flow through it."""
        colour = images.new_tensor(args.colour).view(3, 1, 1)
        return -(images - colour).square().mean((1, 2, 3))

    pipe = cg.load_pipeline(args.pipeline, args.device)
    call = {"num_inference_steps": args.steps, "guidance_scale": 3.0}
    plain = pipe(args.prompt, generator=torch.manual_seed(0), **call).images
    by_colour = cg.Guidance(nearness, scale=args.colour_scale)
    by_clip = cg.CLIPGuidance(args.clip, args.prompt, args.clip_scale)
    with by_colour.attach(pipe), by_clip.attach(pipe):  # guidances that are attached at once add up
        steered = pipe(args.prompt, generator=torch.manual_seed(0), **call).images
    steered[0].save(args.output)
    judge = as_judge(nearness)
    print(f"nearness to the colour: {judge(plain).item():.4f} without, {judge(steered).item():.4f} with guidance")


if __name__ == "__main__":
    main()
