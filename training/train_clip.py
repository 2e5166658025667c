"""Train a CLIP on captioned images, from scratch or from another CLIP.

    accelerate launch training/train_clip.py --config training/recipes/emoji-clip.yaml

The program is :mod:`clip_guidance.training.train_clip`, which is installed as ``clip-guidance train clip``.
"""

from clip_guidance.training.clip_settings import Settings
from clip_guidance.training.settings import parse_settings
from clip_guidance.training.train_clip import main

if __name__ == "__main__":
    main(parse_settings(Settings))
