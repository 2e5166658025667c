r"""Tabulate retrieval of held-out images by tower pair at one training step, from the logs.

    for image in vit resnet; do for text in transformer cbow; do
        accelerate launch training/train_clip.py --config training/recipes/emoji-clip.yaml \
            --image_tower $image --text_tower $text --output runs/$image-$text
    done; done
    python benchmarks/tower_pairs.py --runs runs/*-* --step 400 --output benchmarks/tower_pairs.md

Each image is a query among the names that the held-out images bear; right is right by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.log import read_log
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Which runs to compare, and when."""

    data: str = "../shared/data/emoji64-val.parquet"  # held-out images
    runs: list[str] = field(default_factory=list)  # folders that train_clip.py wrote
    step: int = 400  # compare the runs after this many steps
    output: str = "benchmarks/tower_pairs.md"  # Markdown file for the table


def line(run: Path, step: int) -> tuple[str, ...]:
    """One row of the table from the settings and the log of a run."""
    settings = json.loads((run / "settings.json").read_text())
    (row,) = [row for row in read_log(run / "log.jsonl") if row["step"] == step and "R@1" in row]
    images = step * settings["batch_size"]
    return (
        f"{settings['image_tower']} + {settings['text_tower']}",
        f"{100 * row['R@1']:.1f}",
        f"{100 * row['R@5']:.1f}",
        f"{images:,}",
        f"{settings['seed']}",
    )


def main(settings: Settings) -> None:
    names = len({row.name for row in CaptionedImages.from_parquet(settings.data).rows})
    header = ("towers", "R@1 %", "R@5 %", "images seen", "seed")
    rows = [line(Path(run), settings.step) for run in settings.runs]
    rows.append(("chance", f"{100 / names:.2f}", f"{500 / names:.2f}", "", ""))
    cells = "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))
    table = f"Held-out images among {names} names after {settings.step} steps of the same recipe.\n\n{cells}\n"
    Path(settings.output).write_text(table)
    print(table)


if __name__ == "__main__":
    main(parse_settings(Settings))
