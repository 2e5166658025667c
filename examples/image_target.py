"""Steer towards images in place of words, and away from a text.

python examples/image_target.py cake.png --prompt "a noto picture of a cake" --like apple.png --unlike "a worm"
"""

import argparse
from pathlib import Path

import torch

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompt", required=True, help="what the pipeline draws")
    parser.add_argument("--like", nargs="+", required=True, type=Path, help="images to come near to, of equal weight")
    parser.add_argument("--unlike", help="text to stay away from, with half of the weight")
    parser.add_argument("--scale", type=float, default=20.0, help="strength of CLIP guidance; 0 is none")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--judge", default="emoji-judge", help="CLIP that compares, another than the one that steers")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args()

    target = {path: 1.0 / len(args.like) for path in args.like}  # a Path is an image, a str a text
    if args.unlike:
        target |= {args.unlike: -0.5}
    pipe = cg.load_pipeline(args.pipeline, args.device)
    judge = cg.CLIP.from_pretrained(args.judge, device=args.device)

    def draw():
        call = {"num_inference_steps": args.steps, "guidance_scale": 3.0, "generator": torch.manual_seed(0)}
        return pipe(args.prompt, **call).images

    plain = draw()
    with cg.CLIPGuidance(args.clip, target, args.scale).attach(pipe):
        steered = draw()
    steered[0].save(args.output)
    for name, images in (("without", plain), ("with", steered)):
        found = cg.image_similarity(judge, images, args.like).mean().item()
        print(f"{name} guidance: cosine to the images {found:.3f}")


if __name__ == "__main__":
    main()
