"""Draw several prompts in one batch, each steered towards a target of its own with a strength of its own.

python examples/batch.py batch.png --job "a noto picture of an apple" "a red apple" 10
"""

import argparse

import torch
from diffusers.utils import make_image_grid

import clip_guidance as cg

JOBS = [
    ("a noto picture of an apple", "a red apple", "10"),
    ("a noto picture of an apple", "a green apple", "10"),
    ("a twemoji picture of a dog face", "a dog face", "0"),  # not steered, beside the others
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write, the batch in a row")
    parser.add_argument(
        "--job", nargs=3, action="append", metavar=("PROMPT", "TARGET", "SCALE"), help="an image to draw; repeat it"
    )
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that steers: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    args = parser.parse_args()

    prompts, targets, scales = zip(*(args.job or JOBS), strict=True)
    pipe = cg.load_pipeline(args.pipeline, args.device)
    guidance = cg.CLIPGuidance(args.clip, list(targets), scale=[float(scale) for scale in scales])
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    with guidance.attach(pipe):  # a target and a scale for each prompt: an image is steered as it is alone
        images = pipe(list(prompts), num_inference_steps=args.steps, guidance_scale=3.0, generator=generators).images
    make_image_grid(images, 1, len(images)).save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
