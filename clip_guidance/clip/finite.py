"""Say why the embeddings of a CLIP are not finite, before anything is concluded from them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clip_guidance.images.load import Skipped


def check_finite(model: Any, embeds: Tensor, kind: str) -> Tensor:
    """Return embeddings (n, d) that are all finite.

    Args:
        model: The CLIP that they are from.
        embeds: Vectors, one per input.
        kind: What was embedded, for the message: "text" or "image".

    Raises:
        ValueError: One is not finite; the message names the input and the weights that are the cause.
    """
    finite = embeds.isfinite().all(-1)
    if not finite.all():
        raise ValueError(f"{kind} {int(finite.int().argmin())}: its embedding is not finite: {why_not_finite(model)}")
    return embeds


def finite_rows(
    model: Any, names: list[str], embeds: Tensor, skipped: list[Skipped]
) -> tuple[list[str], Tensor, list[Skipped]]:
    """Keep the images whose embeddings (n, d) are finite; add the others to those that were skipped, with the cause."""
    finite = embeds.isfinite().all(-1)
    if finite.all():
        return names, embeds, skipped
    reason = f"its embedding is not finite: {why_not_finite(model)}"
    damaged = [Skipped(name, reason) for name, good in zip(names, finite, strict=True) if not good]
    return [name for name, good in zip(names, finite, strict=True) if good], embeds[finite], [*skipped, *damaged]


def why_not_finite(model: Any) -> str:
    """Name the weights that are not finite, or the precision in which finite ones overflow."""
    name = f"{model.name_or_path or 'this CLIP'!s:.80}"
    tensors = model.state_dict().items()
    if damaged := [key for key, value in tensors if value.is_floating_point() and not value.isfinite().all()]:
        return f"the weights {', '.join(damaged[:2])} of {name} are not"
    return f"values of {name} overflow in {str(model.dtype).removeprefix('torch.')}"
