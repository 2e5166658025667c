"""Draw the same prompts and seeds without and with CLIP guidance, side by side.

python examples/steer.py steer.png --scale 10
"""

import argparse

import torch
from PIL import Image, ImageDraw

import clip_guidance as cg

PROMPTS = ["a fluent 3d picture of a red apple", "a twemoji picture of a dog face", "a noto picture of a rocket"]


def draw(pipe, prompt: str, seeds: range, steps: int) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": steps, "guidance_scale": 3.0, "generator": generators}
    return pipe(prompt, num_images_per_prompt=len(seeds), **options).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="what to draw, a row each")
    parser.add_argument("--scale", type=float, default=10.0, help="strength of CLIP guidance; 0 is none")
    parser.add_argument("--seeds", type=int, default=4, help="images per prompt, of seeds 0, 1 ...")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args()

    clip, judge = cg.CLIP.from_pretrained("emoji"), cg.CLIP.from_pretrained("emoji-judge")
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    cell, left = 96, 12
    width = left + (2 * args.seeds + 1) * cell - cell // 2
    sheet = Image.new("RGB", (width, len(args.prompts) * (cell + 18) + 18), "white")
    text = ImageDraw.Draw(sheet)
    text.text((left, 4), "without guidance", "black")
    text.text((left + args.seeds * cell + cell // 2, 4), f"with CLIP guidance, scale {args.scale:g}", "black")
    for row, prompt in enumerate(args.prompts):
        plain = draw(pipe, prompt, range(args.seeds), args.steps)
        with cg.CLIPGuidance(clip, prompt, scale=args.scale).attach(pipe):
            steered = draw(pipe, prompt, range(args.seeds), args.steps)
        top = 18 + row * (cell + 18)
        scores = [cg.clip_score(judge, images, prompt).mean().item() for images in (plain, steered)]
        text.text((left, top + cell), f"{prompt}   (judge: {scores[0]:.1f} without, {scores[1]:.1f} with)", "black")
        for column, image in enumerate([*plain, None, *steered]):
            if image is not None:
                x = left + column * cell - (cell // 2 if column > args.seeds else 0)
                sheet.paste(image.resize((cell - 4, cell - 4), Image.Resampling.LANCZOS), (x, top))
    sheet.save(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
