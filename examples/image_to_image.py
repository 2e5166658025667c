"""Redraw an image, or with a mask a part of it, and steer what is drawn.

python examples/image_to_image.py apple.png steered.png --prompt "a noto picture of an apple" --target "a green apple"
python examples/image_to_image.py apple.png steered.png --mask mask.png --prompt "..." --target "..."
"""

import argparse

import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from diffusers.utils import load_image

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="image to begin with")
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--mask", help="image that is white where the other is drawn anew")
    parser.add_argument("--prompt", required=True, help="what the pipeline draws")
    parser.add_argument("--target", help="what CLIP steers towards; by default the prompt")
    parser.add_argument("--strength", type=float, default=0.7, help="share of the steps that are taken, in (0, 1]")
    parser.add_argument("--scale", type=float, default=10.0, help="strength of CLIP guidance; 0 is none")
    parser.add_argument("--size", type=int, default=64, help="side of the square that is drawn; 512 for SD 1")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a whole run")
    args = parser.parse_args()

    size = (args.size, args.size)
    inputs = {"image": load_image(args.image).resize(size), "strength": args.strength}
    if args.mask:  # guidance leaves what the mask keeps as it is
        inputs |= {"mask_image": load_image(args.mask).resize(size), "width": args.size, "height": args.size}
    kind = AutoPipelineForInpainting if args.mask else AutoPipelineForImage2Image
    pipe = kind.from_pipe(cg.load_pipeline(args.pipeline, args.device))
    with cg.CLIPGuidance(args.clip, args.target or args.prompt, args.scale).attach(pipe):
        call = {"num_inference_steps": args.steps, "guidance_scale": 3.0, "generator": torch.manual_seed(0)}
        image = pipe(args.prompt, **inputs, **call).images[0]
    image.save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
