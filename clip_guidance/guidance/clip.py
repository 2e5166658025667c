"""Guidance by CLIP: the reward is CLIP's logit; saved and loaded by a config."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance._tuned import GuidanceDefaults
from clip_guidance.clip import CLIP, DualEncoder
from clip_guidance.guidance.checks import formerly
from clip_guidance.guidance.clip_reward import CLIPReward
from clip_guidance.guidance.config import (
    cutouts_to_config,
    decoding_from_config,
    decoding_to_config,
    guider_from_config,
    guider_to_config,
    mode_from_config,
    mode_to_config,
    target_from_config,
    target_to_config,
)
from clip_guidance.guidance.cutouts import Cutouts
from clip_guidance.guidance.decoding import AUTO, Decoding
from clip_guidance.guidance.guidance import Guidance
from clip_guidance.guidance.modes import Mode
from clip_guidance.guidance.pairs import find_defaults
from clip_guidance.guidance.regions import Targets

_PLAIN = ("start", "stop", "every", "space", "data_variance", "cap", "damping")  # arguments that json holds as they are


class CLIPGuidance(Guidance):
    """Steer a pipeline towards texts and images by CLIP's logit.

    The reward is exp(logit_scale)·cos(image, target), averaged over cutouts. With ``scale=1`` the model's density is
    multiplied by the likelihood that CLIP gives to the target.

    ``save_pretrained(folder)`` and ``from_pretrained(folder)`` save and load it by its ``config``, alone or as the
    guider of a modular pipeline. A config holds the CLIP's name, not its weights: where it was loaded from.

    Args:
        clip: The model, or its name or folder, as in ``CLIP.from_pretrained``. A CLIP that is named is loaded here, and
            moved to the pipeline's device when it is attached.
        target: A text (a str is always a text); an image (PIL, tensor (3, H, W) in [0, 1], or ``pathlib.Path``);
            several with weights, ``{"a red apple": 1.0, Path("worm.png"): -0.5}``, whose rewards are added, so that a
            negative weight steers away; or a :class:`~clip_guidance.guidance.Region`, for a part of the image.
            A list that holds a region or a pair (target, weight) is the sum of its entries:
            ``[Region("a red apple", (0, 0, 0.5, 1)), "a photo"]`` steers the left half and the whole,
            ``[(pil_image, 1.0), ("a photo", -0.5)]`` weighs PIL images, which are no keys of a mapping. Any other list
            holds one target for each of the pipeline's prompts; write ``[[region], [region]]`` for one region each.
        scale: Strength of the tilt: 1 multiplies the model's density by exp(reward), 0 changes nothing, and a
            negative scale lowers the reward. One number, or n numbers for a batch of a multiple of n images, in
            the order of the pipeline's prompts. None, the default, for what was measured for the pipeline and the CLIP
            (the packaged ones), else for a strength that is calibrated in each run: no shift is longer than the
            correction that classifier-free guidance makes (``report.calibrated`` tells). With a published method 1.
        cutouts: Views of each image to average over: their number, of which the whole image is one and the
            others are random crops, or :class:`~clip_guidance.guidance.cutouts.Cutouts` that say more.
        seed: Seed of the crops; each run starts from it.
        chunk: Number of views that pass through CLIP together; None for all.
        mode: How the gradient becomes a shift: "x0" (no backward through the denoiser), "exact" (one backward through
            the denoiser per step), "noisy" (by a tower that reads the noisy sample) and "blend" (that tower, and "x0")
            where such a tower belongs to the CLIP, or a published method with its parameters, one of
            :mod:`clip_guidance.guidance.methods`: ``DPS(zeta=0.5)``, ``LGDMC``, ``FreeDoM``, ``MPGD``,
            ``UniversalGuidance``, ``TFG``; a ``scale`` of 1 is then the paper's own update. Or ``Tilt(2)``, "x0" in
            two steps, or any other :class:`~clip_guidance.guidance.modes.base.Mode`. None, the default, for the best
            that was measured for the pipeline and the CLIP and can steer to the target, else "x0".
        start: Fraction of the run's steps before which guidance rests, in [0, 1). None, the default, for 0 or, where
            ``stop`` is None too, for what was measured.
        stop: Fraction of the run's steps from which on guidance rests, in (0, 1]. None, the default, for 1 or, where
            ``start`` is None too, for what was measured.
        every: Take the gradient at every n-th step; between them the latest one is used again with the weight
            of the step, so that the strength does not depend on it.
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is.
        data_variance: Variance of an element of the clean sample; None for the pipeline's default, 1 for
            latents and 1/4 for pixels in [-1, 1].
        schedule: Maps the fraction of the run's steps that are done, in [0, 1), to a factor of ``scale``; None for 1
            throughout.
        cap: Longest shift, as a multiple of the correction that classifier-free guidance makes at that step to that
            image, both as root mean squares of the predicted clean sample; None for no cap. Needs a hook on the
            denoiser. Without classifier-free guidance the posterior's standard deviation takes its place.
        damping: Curvature κ of the reward, at least 0: a shift is divided by 1 + 2·scale·κ·w, with the posterior
            variance w, as is exact for a reward −κ‖x₀ − a‖². Strong guidance then overshoots less at high noise. None
            for what was measured for the pipeline and the CLIP, else for 0, which is exact for a linear reward.
        decoding: How the image for the reward is decoded, to save memory and time. "auto", the default, decodes no
            larger than the reward's CLIP reads, where that is checked to change its embeddings by little
            (``report.decoding`` tells); None for the whole image by the pipeline's decoder; a
            :class:`~clip_guidance.guidance.Decoding` for more.
        to_image: Maps the predicted clean sample (B, ...) to images (B, 3, H, W) in [0, 1], differentiably, for a
            pipeline whose images :class:`Guidance` cannot make by itself; it takes the place of ``decoding``. None for
            the pipeline's own decoder. For pixels in [-1, 1] it goes with ``data_variance=0.25``.
        guider: As the guider of a modular pipeline: the guider that this one goes around, such as
            ``ClassifierFreeGuidance``, ``AdaptiveProjectedGuidance`` or ``PerturbedAttentionGuidance``; None for the
            conditional prediction alone.

    Attributes:
        report: What happened in the latest run, a :class:`~clip_guidance.guidance.GuidanceReport`.

    Raises:
        TypeError: ``target`` is of another type; or ``schedule`` is not callable, ``mode`` is not a mode, or ``guider``
            is not a guider.
        ValueError: A target is empty; there are regions, and ``decoding`` crops; or another argument is out of range.
        ImageError: An image that is a target cannot be read.
        ModelError: No CLIP is found under the name ``clip``.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with cg.CLIPGuidance("emoji", "a red apple", scale=2.0).attach(pipe) as guidance:
        ...     image = pipe("an apple", num_inference_steps=2, height=32, width=32).images[0]
        >>> [tuple(rewards.shape) for rewards in guidance.report.rewards]  # CLIP's logit at each step
        [(1,), (1,)]
    """

    reward: CLIPReward

    @formerly("prompt", "target")
    def __init__(
        self,
        clip: DualEncoder | str | Path,
        target: Targets,
        scale: float | Sequence[float] | None = None,
        *,
        cutouts: int | Cutouts = 1,
        seed: int = 0,
        chunk: int | None = None,
        mode: str | Mode | None = None,
        start: float | None = None,
        stop: float | None = None,
        every: int = 1,
        space: str = "image",
        data_variance: float | None = None,
        schedule: Callable[[float], float] | None = None,
        cap: float | None = None,
        damping: float | None = None,
        decoding: Decoding | str | None = AUTO,
        to_image: Callable[[Tensor], Tensor] | None = None,
        guider: BaseGuidance | None = None,
    ) -> None:
        self._is_named = isinstance(clip, str | Path)
        cutouts = cutouts if isinstance(cutouts, Cutouts) else Cutouts(cutouts, seed)
        loaded = CLIP.from_pretrained(clip) if isinstance(clip, str | Path) else clip
        super().__init__(
            CLIPReward(loaded, target, cutouts, chunk),
            scale,
            mode,
            start,
            stop,
            every,
            space,
            data_variance,
            schedule=schedule,
            cap=cap,
            damping=damping,
            decoding=decoding,
            to_image=to_image,
            guider=guider,
        )

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.reward, CLIPReward):
            raise TypeError(f"reward must be a CLIPReward, got {type(self.reward).__name__}; Guidance takes any other")

    @property
    def clip(self) -> DualEncoder:
        """The model."""
        return self.reward.clip

    @property
    def target(self) -> Any:
        """The target, or a copy of several; another one acts from the next step on."""
        return self.reward.target

    @target.setter
    def target(self, target: Targets) -> None:
        self.reward.target = target

    #: The name of ``target`` before it could be an image.
    prompt = target

    @property
    def cutouts(self) -> Cutouts:
        """Views of each image; others, or their number, act from the next step on."""
        return self.reward.cutouts

    @cutouts.setter
    def cutouts(self, cutouts: int | Cutouts) -> None:
        self.reward.cutouts = cutouts if isinstance(cutouts, Cutouts) else replace(self.cutouts, count=cutouts)

    @property
    def seed(self) -> int:
        """Seed of the crops; another one acts from the next run on."""
        return self.cutouts.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.cutouts.seed = seed

    @property
    def chunk(self) -> int | None:
        """Number of views that pass through CLIP together; None for all."""
        return self.reward.chunk

    @chunk.setter
    def chunk(self, chunk: int | None) -> None:
        self.reward.chunk = chunk

    def prepare(self, pipe: Any) -> None:
        """Move a CLIP that was loaded here to the pipeline's device.

        A CLIP that the caller passed in stays where it is.
        """
        device = getattr(pipe, "_execution_device", None)
        if self._is_named and device is not None:
            self.reward.to(device)

    def defaults_for(self, pipe: Any) -> GuidanceDefaults:
        """Return what stands on ``pipe`` for the options that are None; it is looked up where there are any."""
        open_ = None in (self.scale, self.mode, self.damping) or (self.start is None and self.stop is None)
        if not open_ or not self._is_tilt:
            return super().defaults_for(pipe)
        return find_defaults(pipe, self.reward, self.mode if isinstance(self.mode, str) else None)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, as json holds them.

        Raises:
            TypeError: An argument is code, has weights, or is an image in memory.
            ValueError: The CLIP has no name: it was made here, and not loaded.
        """
        for code in ("schedule", "to_image"):
            if getattr(self, code) is not None:
                raise TypeError(
                    f"{code} is code, which a config does not hold. Save without it, and set it after loading"
                )
        name = getattr(self.reward.clip, "name_or_path", "")
        if not name:
            raise ValueError(
                "a config names the CLIP, it does not hold its weights, and this CLIP was not loaded from anywhere: "
                "use `clip.save_pretrained(folder)` and `CLIPGuidance(folder, ...)`"
            )
        return {
            "clip": str(name),
            "target": target_to_config(self.target),
            "scale": self.scale if isinstance(self.scale, int | float | None) else self._scales,
            "cutouts": cutouts_to_config(self.reward.cutouts),
            "chunk": self.reward.chunk,
            "mode": mode_to_config(self.mode),
            **{option: getattr(self, option) for option in _PLAIN},
            "decoding": decoding_to_config(self.decoding),
            "guider": guider_to_config(self.guider, CLIPGuidance),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a guidance from its ``config``.

        Args:
            config: What the property ``config`` returned, also after a way through json.
            return_unused_kwargs: Return the arguments that were not used, too.
            kwargs: Take the place of what is in ``config``, such as a ``clip`` that is loaded already.

        Raises:
            ValueError: ``config`` is not the config of a ``CLIPGuidance``.
        """
        config, kwargs = ({"target" if k == "prompt" else k: v for k, v in each.items()} for each in (config, kwargs))
        if not {"clip", "target"} <= {*config, *kwargs}:
            raise ValueError(
                f"expected the config of a CLIPGuidance, with its clip and target, got {', '.join(config) or 'nothing'}"
            )
        makers: dict[str, Callable[[Any], Any]] = {
            "target": target_from_config,
            "cutouts": lambda config: Cutouts(**config),
            "decoding": decoding_from_config,
            "guider": partial(guider_from_config, own=CLIPGuidance),
            "mode": mode_from_config,
        }
        config.setdefault("decoding", None)  # as it was decoded before there was a choice
        made = {name: make(config[name]) for name, make in makers.items() if name in {*config} - {*kwargs}}
        return super().from_config({**config, **made}, return_unused_kwargs, **kwargs)


#: Saved pipelines store this module path; keep it stable.
CLIPGuidance.__module__ = "clip_guidance.guidance"
