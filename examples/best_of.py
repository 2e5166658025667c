"""Draw several candidates, let one CLIP choose the best, and ask another one whether the choice is any good.

python examples/best_of.py best.png --prompt "a noto picture of a rocket" --candidates 8
"""

import argparse
from statistics import fmean

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write")
    parser.add_argument("--prompt", required=True, help="what is drawn")
    parser.add_argument("--candidates", type=int, default=8, help="images to choose from, of seeds 0, 1 ...")
    parser.add_argument("--batch-size", type=int, default=4, help="candidates that are drawn together")
    parser.add_argument("--scale", type=float, default=0.0, help="strength of CLIP guidance in each of them; 0 is none")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--clip", default="emoji", help="CLIP that chooses: a packaged name, a folder, or a hub id")
    parser.add_argument("--judge", default="emoji-judge", help="CLIP that had no part in it")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    args = parser.parse_args()

    clip, judge = (cg.CLIP.from_pretrained(name, device=args.device) for name in (args.clip, args.judge))
    pipe = cg.load_pipeline(args.pipeline, args.device)
    reward = cg.guidance.CLIPReward(clip, args.prompt)
    call = {"prompt": args.prompt, "num_inference_steps": args.steps, "guidance_scale": 3.0}
    with cg.CLIPGuidance(clip, args.prompt, args.scale).attach(pipe):
        found = cg.best_of(pipe, args.candidates, reward, batch_size=args.batch_size, **call)
    found.images[0].save(args.output)
    scores = cg.clip_score(judge, found.images, args.prompt).tolist()
    for seed, rating, score in zip(found.seeds, found.rewards, scores, strict=True):
        print(f"seed {seed}: the chooser says {rating:.2f}, the judge {score:.1f}")
    print(f"the judge gives the best {scores[0]:.1f}, and {fmean(scores):.1f} to all on average")


if __name__ == "__main__":
    main()
