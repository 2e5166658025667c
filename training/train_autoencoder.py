"""Train the autoencoder of a latent diffusion model, from a trained one or from scratch.

    accelerate launch training/train_autoencoder.py --config training/recipes/emoji-autoencoder.yaml

The program is :mod:`clip_guidance.training.diffusion.train_autoencoder`, which is installed as
``clip-guidance train autoencoder``.
"""

from clip_guidance.training.diffusion.train_autoencoder import Settings, main
from clip_guidance.training.settings import parse_settings

if __name__ == "__main__":
    main(parse_settings(Settings))
