"""Guidance by CLIP: the reward is its logit, and a config says all there is to say."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.guiders import BaseGuidance

from clip_guidance.guidance.config import (
    cutouts_to_config,
    decoding_from_config,
    decoding_to_config,
    guider_from_config,
    guider_to_config,
    mode_from_config,
    mode_to_config,
)
from clip_guidance.guidance.cutouts import Cutouts
from clip_guidance.guidance.engine.decoder import Decoding
from clip_guidance.guidance.guidance import Guidance
from clip_guidance.guidance.modes.base import Mode
from clip_guidance.guidance.rewards import CLIPReward, Prompt

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP

_PLAIN = ("start", "stop", "every", "space", "data_variance", "cap")  # arguments that json holds as they are
#: Of a config, how each of the other arguments is made again.
_FROM_CONFIG: dict[str, Callable[[Any], Any]] = {
    "cutouts": lambda config: Cutouts(**config),
    "decoding": decoding_from_config,
    "guider": guider_from_config,
    "mode": mode_from_config,
}


class CLIPGuidance(Guidance):
    """Steer a pipeline towards a prompt by CLIP's logit; see :class:`Guidance` for the other arguments.

    With ``scale=1`` the model's density is multiplied by the likelihood that CLIP gives to the prompt.

    ``save_pretrained(folder)`` and ``from_pretrained(folder)`` save and load it by its ``config``, alone or as the
    guider of a modular pipeline. A config holds the CLIP's name, not its weights: where it was loaded from.

    Args:
        clip: The model, or its name or folder, as in ``CLIP.from_pretrained``; one that is named is loaded, and
            follows the pipeline to its device.
        prompt: One prompt; or one for each of the pipeline's prompts; or several with weights for all images,
            ``{"a red apple": 1.0, "a photo": -0.5}``.
        scale: Strength of the tilt.
        cutouts: Views of each image to average over: their number, of which the whole image is one and the
            others are random crops, or :class:`~clip_guidance.guidance.cutouts.Cutouts` that say more.
        seed: Seed of the crops; each run starts from it.
        chunk: Number of views that pass through CLIP together; None for all.
        mode: As in :class:`Guidance`.
        start: As in :class:`Guidance`.
        stop: As in :class:`Guidance`.
        every: As in :class:`Guidance`.
        space: As in :class:`Guidance`.
        data_variance: As in :class:`Guidance`.
        schedule: As in :class:`Guidance`.
        cap: As in :class:`Guidance`.
        decoding: As in :class:`Guidance`.
        guider: As in :class:`Guidance`.
    """

    reward: CLIPReward

    def __init__(
        self,
        clip: "CLIP | str | Path",
        prompt: Prompt,
        scale: float | Sequence[float] = 1.0,
        *,
        cutouts: int | Cutouts = 1,
        seed: int = 0,
        chunk: int | None = None,
        mode: str | Mode = "x0",
        start: float = 0.0,
        stop: float = 1.0,
        every: int = 1,
        space: str = "image",
        data_variance: float | None = None,
        schedule: Callable[[float], float] | None = None,
        cap: float | None = None,
        decoding: Decoding | None = None,
        guider: BaseGuidance | None = None,
    ) -> None:
        self.prompt = prompt
        self._is_named = isinstance(clip, str | Path)
        cutouts = cutouts if isinstance(cutouts, Cutouts) else Cutouts(cutouts, seed)
        reward = CLIPReward(_load(clip) if isinstance(clip, str | Path) else clip, prompt, cutouts, chunk)
        options: dict[str, Any] = {"schedule": schedule, "cap": cap, "decoding": decoding, "guider": guider}
        super().__init__(reward, scale, mode, start, stop, every, space, data_variance, **options)

    def meet(self, pipe: Any) -> None:
        """A CLIP that was named is nobody's but ours to move to where the images are."""
        device = getattr(pipe, "_execution_device", None)
        if self._is_named and device is not None:
            self.reward.to(device)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, as json holds them.

        Raises:
            TypeError: An argument is code or has weights.
            ValueError: The CLIP has no name: it was made here, and not loaded.
        """
        if self.schedule is not None:
            raise TypeError(
                "a schedule is code, which a config does not hold. Save without it, and set it after loading"
            )
        name = getattr(self.reward.clip, "name_or_path", "")
        if not name:
            raise ValueError(
                "a config names the CLIP, it does not hold its weights, and this CLIP was not loaded from anywhere: "
                "use `clip.save_pretrained(folder)` and `CLIPGuidance(folder, ...)`"
            )
        prompt = self.prompt if isinstance(self.prompt, str | Mapping) else list(self.prompt)
        return {
            "clip": str(name),
            "prompt": dict(prompt) if isinstance(prompt, Mapping) else prompt,
            "scale": self.scale if isinstance(self.scale, int | float) else self._scales,
            "cutouts": cutouts_to_config(self.reward.cutouts),
            "chunk": self.reward.chunk,
            "mode": mode_to_config(self.mode),
            **{option: getattr(self, option) for option in _PLAIN},
            "decoding": decoding_to_config(self.decoding),
            "guider": guider_to_config(self.guider),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A guidance by its ``config``; ``kwargs`` take the place of what is in it, such as a ``clip`` at hand.

        Raises:
            ValueError: It is not the config of a ``CLIPGuidance``.
        """
        if not {"clip", "prompt"} <= {*config, *kwargs}:
            raise ValueError(
                f"expected the config of a CLIPGuidance, with its clip and prompt, got {', '.join(config) or 'nothing'}"
            )
        made = {name: make(config[name]) for name, make in _FROM_CONFIG.items() if name in {*config} - {*kwargs}}
        return super().from_config({**config, **made}, return_unused_kwargs, **kwargs)


#: Under this name a saved pipeline finds it.
CLIPGuidance.__module__ = "clip_guidance.guidance"


def _load(name: str | Path) -> "CLIP":
    from clip_guidance.clip import CLIP

    return CLIP.from_pretrained(name)
