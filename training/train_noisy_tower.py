"""Train a tower that reads noisy latents, for guidance in mode "noisy".

    accelerate launch training/train_noisy_tower.py --config training/recipes/emoji-noisy-tower.yaml

The program is :mod:`clip_guidance.training.diffusion.train_noisy_tower`, which is installed as
``clip-guidance train noisy-tower``.
"""

from clip_guidance.training.diffusion.train_noisy_tower import Settings, main
from clip_guidance.training.settings import parse_settings

if __name__ == "__main__":
    main(parse_settings(Settings))
