"""``clip-guidance convert``: write a CLIP as the folder of another library, or one of another library as ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _convert_options as convert_options
from clip_guidance.cli import _options as options


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        model: Name of the CLIP.
        format: The library that reads the folder.
        folder: Where it is.
        parameters: Number of parameters.
        bytes: Size of its files.
    """

    model: str
    format: str
    folder: str
    parameters: int
    bytes: int


def command(
    model: convert_options.Model,
    folder: convert_options.NewFolder,
    to: convert_options.To,
    repository: convert_options.Repository = None,
    json: options.Json = False,
) -> None:
    """Write a CLIP as a folder of transformers or open_clip, or one of theirs as ours.

    The embeddings stay equal, and so does the precision in which the weights are stored. What the other library has no
    equal for is refused: a ResNet, a bag of words, a convolutional stem.

    Example: clip-guidance convert runs/clip exported/ --to transformers
    """
    if repository is not None and to is not convert_options.Library.open_clip:
        raise typer.BadParameter("--repository is for --to open_clip")
    common.quiet("transformers")
    from clip_guidance.clip import CLIP
    from clip_guidance.clip.export import save_open_clip, save_transformers

    clip = CLIP.from_pretrained(model, dtype="auto")
    if not isinstance(clip, CLIP):
        raise ValueError(f"{model}: its towers are another library's own, which only the library writes")
    if to is convert_options.Library.open_clip:
        save_open_clip(clip, folder, repository)
    elif to is convert_options.Library.transformers:
        save_transformers(clip, folder)
    else:
        clip.save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parameters = sum(each.numel() for each in clip.parameters())
    written = Converted(model, to.value, str(folder), parameters, size)
    if json:
        common.print_json(asdict(written))
        return
    row = (written.model, written.format, written.folder, f"{parameters:,}", f"{size / 1e6:.1f} MB")
    common.print_table(["model", "format", "folder", "parameters", "size"], [row])
