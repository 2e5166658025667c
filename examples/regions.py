"""Steer each part of an image towards a target of its own.

python examples/regions.py fruit.png --prompt "fruit" --region "a red apple" 0 0 .5 1 --region "a pear" .5 0 1 1
"""

import argparse

import torch

import clip_guidance as cg

BOX = ("TARGET", "LEFT", "TOP", "RIGHT", "BOTTOM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompt", required=True, help="what the pipeline draws")
    parser.add_argument(
        "--region", nargs=5, action="append", required=True, metavar=BOX,
        help="a text and the box that it is for, in shares of the sides; repeat it, regions may overlap",
    )  # fmt: skip
    parser.add_argument("--everywhere", help="text that the whole image is steered towards as well")
    parser.add_argument("--scale", type=float, default=20.0, help="strength of CLIP guidance; 0 is none")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args()

    target = [cg.Region(text, tuple(map(float, box))) for text, *box in args.region]
    if args.everywhere:
        target.append(args.everywhere)
    pipe = cg.load_pipeline(args.pipeline, args.device)
    with cg.CLIPGuidance(args.clip, target, args.scale).attach(pipe):
        call = {"num_inference_steps": args.steps, "guidance_scale": 3.0, "generator": torch.manual_seed(0)}
        image = pipe(args.prompt, **call).images[0]
    image.save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
