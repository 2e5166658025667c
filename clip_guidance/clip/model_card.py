"""The README of a trained CLIP, as the hub shows it: what it is, how it is used, what it was trained on and reached.

Everything in it is read off the model, the settings and the log; what only people know (licence of the data, limits) is
left as a line to fill in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from clip_guidance.clip import CLIP

USE = """\
```python
import clip_guidance as cg

clip = cg.CLIP.from_pretrained("{name}")
clip.encode_text(["a red apple"]), clip.encode_image("apple.png")  # unit vectors: judge
pipe = cg.load_pipeline("a/pipeline")
with cg.CLIPGuidance(clip, "a red apple").attach(pipe):  # steer any diffusers pipeline
    image = pipe("an apple").images[0]
pipe.text_encoder = clip.text_encoder  # condition one that is trained on it
```"""


def model_card(
    clip: CLIP, name: str, *, settings: Mapping[str, Any] | None = None, figures: Mapping[str, float] | None = None
) -> str:
    """Markdown with the hub's metadata.

    Args:
        clip: the trained model.
        name: what it will be called on the hub.
        settings: what it was trained with; values at None or "" are left out.
        figures: what was measured on held-out images, such as ``{"R@1": 0.45}``; shares in [0, 1].

    Returns:
        The text of a README.md.
    """
    from huggingface_hub import ModelCardData

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
        f"{clip.config.projection_dim} dimensions.",
        "| tower | kind | reads | width | parameters |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows),
        "## Use",
        USE.format(name=name),
    ]
    if figures:
        lines = [f"| {key} | {100 * value:.1f} % |" for key, value in figures.items()]
        parts += ["## Figures", "Held-out images:", "| | |\n| --- | --- |\n" + "\n".join(lines)]
    if settings:
        given = {key: value for key, value in settings.items() if value not in (None, "", [])}
        parts += ["## Training", "```json\n" + json.dumps(given, indent=1, default=str) + "\n```"]
    parts += ["## Data and limits", "To be written: where the images are from, their licence, what it does not know."]
    return "\n\n".join(parts) + "\n"


def write_model_card(folder: str | Path, clip: CLIP, **options: Any) -> Path:
    """Writes :func:`model_card` to ``folder/README.md``, unless there is one: people edit it. Returns its path."""
    path = Path(folder) / "README.md"
    if not path.exists():
        path.write_text(model_card(clip, options.pop("name", None) or Path(folder).resolve().name, **options))
    return path


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
