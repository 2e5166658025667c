"""Train a small latent diffusion model conditioned on the frozen text tower of a CLIP.

    accelerate launch training/train_diffusion.py --config training/recipes/emoji-diffusion.yaml

The program is :mod:`clip_guidance.training.diffusion.train_diffusion`, which is installed as
``clip-guidance train diffusion``.
"""

from clip_guidance.training.diffusion.train_diffusion import Settings, main
from clip_guidance.training.settings import parse_settings

if __name__ == "__main__":
    main(parse_settings(Settings))
