"""Steer by a reward that was trained on what people prefer, then choose among candidates by it.

python examples/preference_reward.py liked.png --prompt "a red apple" --reward pickscore --device cuda
"""

import argparse

import torch

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="image file to write, the best candidate")
    parser.add_argument("--prompt", required=True, help="what is drawn, and what the reward rates against")
    parser.add_argument(
        "--reward", default="pickscore", help="pickscore, hpsv2.1, aesthetic, imagereward, a folder or a hub id"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the reward, in its own unit; 0 is none")
    parser.add_argument("--candidates", type=int, default=4, help="images that are drawn, of seeds 0, 1 ...")
    parser.add_argument("--pipeline", default="emoji", help="pipeline: a packaged name, a folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the models are put, such as cuda")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args()

    reward = cg.load_reward(args.reward, args.prompt, device=args.device)
    pipe = cg.load_pipeline(args.pipeline, args.device)
    call = {"prompt": args.prompt, "num_inference_steps": args.steps, "guidance_scale": 3.0}
    plain = pipe(generator=torch.manual_seed(0), **call).images
    with cg.Guidance(reward, scale=args.scale).attach(pipe):
        found = cg.best_of(pipe, args.candidates, reward, **call)
    found.images[0].save(args.output)
    print(f"seed 0 without guidance: {reward.score(plain, [args.prompt]).item():.4f}")
    for seed, rating in zip(found.seeds, found.rewards, strict=True):
        print(f"seed {seed} with guidance: {rating:.4f}")


if __name__ == "__main__":
    main()
