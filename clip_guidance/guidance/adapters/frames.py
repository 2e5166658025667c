"""Which latent frames of a video are decoded for a few of its images.

A rule maps the positions of the chosen latent frames, rising, and their number in the video to the positions that are
decoded together. A chosen latent frame's image must not change by what is left out, and that depends on the decoder.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from clip_guidance.guidance.adapters.by_class import by_class

FrameRule = Callable[[Sequence[int], int], Sequence[int]]


def alone(chosen: Sequence[int], count: int) -> Sequence[int]:
    """Decode the chosen frames alone: the decoder is one of images."""
    return chosen


def up_to_last(chosen: Sequence[int], count: int, chunk: int = 1) -> Sequence[int]:
    """Decode up to the last chosen frame: the decoder is causal.

    Args:
        chosen: Positions of the chosen latent frames, rising.
        count: Number of latent frames of the video.
        chunk: Latent frames that the decoder takes at a time; the first chunk also takes what is left over.
    """
    needed = max(chosen[-1] + 1, chunk + count % chunk)
    return range(min(count, needed + (count - needed) % chunk))


def whole(chosen: Sequence[int], count: int) -> Sequence[int]:
    """Decode the whole video: every frame's image depends on all latents."""
    return range(count)


#: The rule of each decoder's class; any other decoder decodes the whole video.
RULES: dict[str, FrameRule] = {
    **dict.fromkeys(("AutoencoderKL", "AutoencoderTiny"), alone),
    **dict.fromkeys(("AutoencoderKLWan", "AutoencoderKLMochi", "AutoencoderKLHunyuanVideo15"), up_to_last),
    "AutoencoderKLCogVideoX": partial(up_to_last, chunk=2),
}


def frame_rule(decoder: Any) -> FrameRule:
    """Find the rule of a decoder by its class."""
    name = by_class(RULES, decoder)
    return whole if name is None else RULES[name]


def spread(wanted: int | Sequence[int], count: int) -> list[int]:
    """Return the positions of the wanted frames of ``count``, rising.

    Args:
        wanted: How many frames, evenly spread (each in the middle of its share of the video; all if there are fewer),
            or their positions, negative ones from the end.
        count: Number of latent frames of the video.

    Raises:
        ValueError: The video has no frame at a position.

    Example:
        >>> spread(4, 21), spread((0, -1), 21)
        ([2, 7, 13, 18], [0, 20])
    """
    if isinstance(wanted, int):
        number = min(wanted, count)
        return [(2 * i + 1) * count // (2 * number) for i in range(number)]
    outside = [position for position in wanted if not -count <= position < count]
    if outside:
        raise ValueError(f"frames={tuple(wanted)} chooses latent frame {outside[0]} of a video that has {count}")
    return sorted({position % count for position in wanted})
