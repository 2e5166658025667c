"""Draw the README's figure from the images that run.py has kept in ``work``.

    python benchmarks/steering/figure.py \
        --data ../shared/data/emoji64-train.parquet --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

Above, the model is given no text, so that the first prompts of the benchmark act by CLIP guidance alone. Below, the
model is given the text, and there are the first prompts whose name the judge does not find in what it draws without
guidance. None is chosen otherwise. A green frame: of all names the judge finds the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from drawing import Cell, load_cell
from methods import BOTH, DEFAULT, PLAIN, TABLES
from PIL import Image, ImageDraw, ImageFont
from prompt_sets import Item
from run import Program, Settings
from torch import Tensor

from clip_guidance.training.settings import parse_settings

COLUMNS = 8
NO_TEXT = "no text"


@dataclass(frozen=True)
class Line:
    """Hold a line of images.

    Attributes:
        title: what stands at its left.
        images: uint8 (n, 3, H, W).
        right: (n,), 1 where the judge finds the name.
    """

    title: str
    images: Tensor
    right: Tensor

    def of(self, chosen: Sequence[int]) -> Line:
        """Return the images with these numbers."""
        return Line(self.title, self.images[list(chosen)], self.right[list(chosen)])


def first_wrong(right: Tensor, count: int) -> list[int]:
    """Return the numbers of the first ``count`` that are not right."""
    return [number for number, each in enumerate(right.tolist()) if not each][:count]


def band(prompts: Sequence[str], lines: Sequence[Line]) -> Image.Image:
    """Show prompts as several methods draw them from the same noise, one below the other."""
    cell, caption, left = 88, 28, 104
    sheet = Image.new("RGB", (left + len(prompts) * cell, len(lines) * cell + caption), "white")
    text = ImageDraw.Draw(sheet)
    for place, line in enumerate(lines):
        y = place * cell
        text.multiline_text((2, y + 32), line.title, "black")
        for column, (image, right) in enumerate(zip(line.images, line.right.tolist(), strict=True)):
            x = left + column * cell
            colour = "#2a9d3a" if right else "#dddddd"
            text.rectangle((x + 1, y + 1, x + cell - 3, y + cell - 3), outline=colour, width=3)
            shown = Image.fromarray(image.permute(1, 2, 0).numpy())
            sheet.paste(shown.resize((cell - 12, cell - 12), Image.Resampling.LANCZOS), (x + 5, y + 5))
    for column, prompt in enumerate(prompts):
        style, _, name = prompt.removeprefix("a ").rpartition(" picture of a ")
        words = "\n".join(shortened(each, cell - 6) for each in (name, style))
        text.multiline_text((left + column * cell + 2, len(lines) * cell + 1), words, "black", spacing=1)
    return sheet


def below(upper: Image.Image, lower: Image.Image, gap: int = 14) -> Image.Image:
    """Put two images one below the other."""
    sheet = Image.new("RGB", (max(upper.width, lower.width), upper.height + gap + lower.height), "white")
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, upper.height + gap))
    return sheet


def shortened(words: str, width: int) -> str:
    """Shorten ``words`` to what fits into ``width`` pixels of the small font."""
    font = ImageFont.load_default()
    while words and font.getlength(words) > width:
        words = words[:-1]
    return words


def kept(program: Program, table: str, title: str, items: Sequence[Item]) -> Cell:
    """Load what run.py kept of a method.

    Raises:
        SystemExit: some of it is not there.
    """
    (method,) = (each for each in TABLES[table]() if each.title == title)
    paths = program.drawer.paths(Path(program.settings.work), method, items)
    if missing := [path for path in paths if not path.is_file()]:
        raise SystemExit(f"{missing[0]} of {title!r} is missing: draw it with run.py --table {table}")
    return load_cell(paths)


def main(settings: Settings) -> None:
    program = Program(settings)
    judge = program.judge
    if judge is None:
        return
    items = program.items("held-out")

    def line(title: str, table: str, method: str, of: Sequence[Item]) -> Line:
        images = kept(program, table, method, of).images
        return Line(title, images, torch.as_tensor(judge.named(images, of)))

    first = items[: program.drawer.batch_size]  # a file is a batch
    free = [
        line("no text,\nno guidance", "text-free", NO_TEXT, first),
        line("no text,\nCLIP guidance", "text-free", BOTH, first),
    ]
    given = [line("text alone", "main", PLAIN, items), line("text and\nCLIP guidance", "main", DEFAULT, items)]
    chosen = first_wrong(given[0].right, COLUMNS)
    bands = [(range(COLUMNS), free), (chosen, given)]
    upper, lower = (
        band([items[i].prompt for i in which], [each.of(which) for each in lines]) for which, lines in bands
    )
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    below(upper, lower).save(output / "figure.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
