"""Classify images without training a classifier.

python examples/zero_shot.py images/*.png --labels "red apple,dog face,rocket"
"""

import argparse

import clip_guidance as cg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--labels", required=True, help="names of the classes, separated by commas")
    parser.add_argument("--model", default="emoji", help="CLIP: a packaged name, a folder, or a hub id")
    args = parser.parse_args()
    classifier = cg.ZeroShotClassifier(cg.CLIP.from_pretrained(args.model), args.labels.split(","))
    for path, best in zip(args.images, classifier(args.images).top(3), strict=True):
        print(path, *(f"{guess.label} {guess.prob:.2f}" for guess in best), sep="\t")


if __name__ == "__main__":
    main()
