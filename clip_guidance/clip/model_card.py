"""Write the README of a trained CLIP, as the hub shows it: its towers, its use, its training and its figures.

All of it comes from the model, the settings and the log; what only people know (licence of the data, limits) is left as
a line to fill in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from clip_guidance._files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from clip_guidance.clip.model import CLIP

USE = """\
```python
import clip_guidance as cg

clip = cg.CLIP.from_pretrained("{place}")
pipe = cg.load_pipeline("emoji")  # or any pipeline of diffusers
with cg.CLIPGuidance(clip, "a red apple").attach(pipe):  # steer
    image = pipe("an apple", num_inference_steps=20).images[0]
print(clip.encode_image(image) @ clip.encode_text(["a red apple"]).T)  # judge: their cosine
```

A pipeline that is trained on its text encoder is conditioned by it: `pipe.text_encoder = clip.text_encoder`."""


@dataclass(frozen=True)
class Figure:
    """A figure of a model card, with what is needed to judge it.

    Attributes:
        value: Share in [0, 1].
        count: Number of cases.
        chance: Share that a model which knows nothing would reach.
        of: What was measured, such as the name of a data set.
    """

    value: float
    count: int
    chance: float
    of: str


def model_card(
    clip: CLIP,
    name: str,
    *,
    place: str | None = None,
    settings: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> str:
    """Compose a model card in Markdown, with the hub's metadata.

    Args:
        clip: The trained model.
        name: What the model will be called on the hub.
        place: What ``CLIP.from_pretrained`` takes; by default the name.
        settings: What the model was trained with; values of None, "" and [] are left out.
        figures: What was measured on images that the user holds out, such as ``{"R@1": Figure(0.45, 789, ...)}``.

    Returns:
        The text of a README.md.
    """
    data = ModelCardData(
        library_name="clip_guidance",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "diffusers", "guidance"],
        model_name=name,
    )
    vision, text = clip.config.vision_config, clip.config.text_config
    towers: list[tuple[str, str, str, Any]] = [
        ("image", vision.model_type, f"{vision.image_size} × {vision.image_size} pixels", clip.image_encoder),
        ("text", text.model_type, f"{text.max_position_embeddings} tokens of {text.vocab_size:,}", clip.text_encoder),
    ]
    rows = [
        f"| {part} | `{kind}` | {reads} | {module.config.hidden_size} | {_millions(module)} |"
        for part, kind, reads, module in towers
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A CLIP of {_millions(clip)} parameters, trained with clip_guidance: both towers meet in a space of "
        f"{clip.projection_dim} dimensions.",
        "| tower | kind | reads | width | parameters |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows),
        "## Use",
        USE.format(place=place or name),
    ]
    if figures:
        lines = [
            f"| {key} | {100 * figure.value:.1f} % | {100 * figure.chance:.2g} % | {figure.count:,} of {figure.of} |"
            for key, figure in figures.items()
        ]
        head = "| figure | share | by chance | n |\n| --- | --- | --- | --- |\n"
        parts += ["## Figures", head + "\n".join(lines)]
    if settings:
        given = {key: value for key, value in settings.items() if value not in (None, "", [])}
        parts += ["## Training", "```json\n" + json.dumps(given, indent=1, default=str) + "\n```"]
    parts += ["## Data and limits", "To be written: where the images are from, their licence, what it does not know."]
    return "\n\n".join(parts) + "\n"


def write_model_card(folder: str | Path, clip: CLIP, **options: Any) -> Path:
    """Write :func:`model_card` to ``folder/README.md``, unless there is one: people edit it.

    Args:
        folder: Where the model is saved; must exist.
        clip: The trained model.
        **options: Passed to :func:`model_card`; ``name`` is by default that of the folder, and ``place`` its path as
            it is given, so that the card's example works where the program ran.

    Returns:
        The path of the README.md.
    """
    path = Path(folder) / "README.md"
    if not path.exists():
        name = options.pop("name", None) or Path(folder).resolve().name
        with write_atomically(path) as partial:
            text = model_card(clip, name, **{"place": Path(folder).as_posix(), **options})
            partial.write_text(text, encoding="utf-8")
    return path


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
