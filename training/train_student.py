"""Train a student that draws in a few steps what a latent diffusion model draws in many.

    accelerate launch training/train_student.py --config training/recipes/emoji-student.yaml

The program is :mod:`clip_guidance.training.diffusion.train_student`, which is installed as
``clip-guidance train student``.
"""

from clip_guidance.training.diffusion.train_student import Settings, main
from clip_guidance.training.settings import parse_settings

if __name__ == "__main__":
    main(parse_settings(Settings))
