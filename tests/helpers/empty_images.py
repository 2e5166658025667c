"""Images that come out empty."""

from PIL import Image

from clip_guidance.generation import batch, generator


def spoil(monkeypatch, *seeds: int) -> list[list[int]]:
    """Draw the images of these seeds black; returns a list that gets the seeds of each batch."""
    draw, drawn = generator.draw_batch, []

    def sometimes(pipe, guidance, settings, on_step=None):
        drawn.append([one.seed for one in settings])
        made = zip(draw(pipe, guidance, settings, on_step), settings, strict=True)
        return [batch._checked(Image.new("RGB", (8, 8)), one) if one.seed in seeds else image for image, one in made]

    monkeypatch.setattr(generator, "draw_batch", sometimes)
    return drawn
