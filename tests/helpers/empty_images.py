"""Images that come out empty, or are interrupted before they are written."""

from PIL import Image

from clip_guidance.generation import batch, models
from clip_guidance.generation.image import GeneratedImage


def spoil(monkeypatch, *seeds: int) -> list[list[int]]:
    """Draw the images of these seeds black; returns a list that gets the seeds of each batch."""
    draw, drawn = models.draw_batch, []

    def sometimes(pipe, guidance, settings, on_step=None):
        drawn.append([one.seed for one in settings])
        made = zip(draw(pipe, guidance, settings, on_step), settings, strict=True)
        return [batch._checked(Image.new("RGB", (8, 8)), one) if one.seed in seeds else image for image, one in made]

    monkeypatch.setattr(models, "draw_batch", sometimes)
    return drawn


def interrupt_image(monkeypatch, seed: int) -> None:
    """Press Ctrl-C when the image of this seed is to be written."""
    write = GeneratedImage.write

    def interrupted(image, path):
        if image.settings.seed == seed:
            raise KeyboardInterrupt
        return write(image, path)

    monkeypatch.setattr(GeneratedImage, "write", interrupted)
