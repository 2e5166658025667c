"""Which pipeline and which CLIP a guidance brings together, and what suits them."""

from typing import Any

from torch import nn

from clip_guidance._tuned import GuidanceDefaults, KnownModel, TunedPair, choose_defaults, packaged_pairs
from clip_guidance.clip import DualEncoder
from clip_guidance.clip.fingerprint import digest
from clip_guidance.clip.hub import ModelError
from clip_guidance.guidance.clip_reward import CLIPReward
from clip_guidance.guidance.engine.host import resolve
from clip_guidance.guidance.modes.named import MODES
from clip_guidance.guidance.modes.noisy import Noisy


def find_defaults(pipe: Any, reward: CLIPReward, mode: str | None = None) -> GuidanceDefaults:
    """Find what suits a pipeline and a CLIP in the packaged table; else the calibrated default.

    The CLIP's weights are read only where the table has the pipeline.

    Args:
        pipe: The pipeline.
        reward: The CLIP, and what it steers to.
        mode: The mode that is asked for; None for the best that can steer to this.
    """
    pipeline = pipeline_fingerprint(pipe)
    known = [pair for pair in packaged_pairs() if pair.pipeline.fingerprint == pipeline]
    own = reward.clip.fingerprint() if known else ""
    measured = [pair.defaults for pair in known if pair.clip.fingerprint == own]
    return choose_defaults(measured, mode, lambda name: _serves(name, pipe, reward)) or GuidanceDefaults()


def _serves(name: str, pipe: Any, reward: CLIPReward) -> bool:
    """Tell whether a mode can steer this pipeline to this: a region, or an autoencoder of other latents, has no tower.

    What refuses a mode that is asked for lets one that nobody asked for give way to the next.
    """
    mode = MODES[name]
    if not isinstance(mode, Noisy):
        return True
    try:
        mode.fitted(pipe, reward)
    except (ValueError, ModelError):
        return False
    return True


def known_models(pipe: Any, clip: DualEncoder) -> tuple[KnownModel, KnownModel]:
    """Return what a table knows a pipeline and a CLIP by."""
    name = str(getattr(pipe, "name_or_path", None) or "")
    return KnownModel(name, pipeline_fingerprint(pipe)), KnownModel(str(clip.name_or_path), clip.fingerprint())


def check_pair(pair: TunedPair, pipe: Any, clip: DualEncoder) -> None:
    """Refuse what was measured for another pipeline or CLIP.

    Raises:
        ValueError: It was; the message names both.
    """
    for what, measured, found in zip(
        ("pipeline", "CLIP"), (pair.pipeline, pair.clip), known_models(pipe, clip), strict=True
    ):
        if measured.fingerprint != found.fingerprint:
            raise ValueError(
                f"tuned for the {what} {measured.name[-80:]!r} ({measured.fingerprint}), got {found.name[-80:]!r} "
                f"({found.fingerprint}): tune this pair, or leave the file out"
            )


def pipeline_fingerprint(pipe: Any) -> str:
    """Compute 16 hexadecimal digits that tell kinds of pipelines apart.

    They depend on the names and shapes of the weights of the denoiser and of the autoencoder, and on the scale of the
    latents; not on the weights themselves, which may be offloaded: what suits a model suits those that are fine-tuned
    from it. Nor do they depend on the scheduler or the precision.

    Raises:
        UnsupportedSchedulerError: The scheduler is not known.
        ValueError: ``pipe`` has no scheduler or denoiser.
    """
    vae = getattr(pipe, "vae", None)
    networks = [*resolve(pipe).denoisers, *([vae] if isinstance(vae, nn.Module) else [])]
    shapes = [
        sorted((name.replace("_orig_mod.", ""), list(weight.shape)) for name, weight in network.named_parameters())
        for network in networks
    ]
    scaling = float(getattr(getattr(vae, "config", None), "scaling_factor", None) or 1.0)
    return digest([shapes, scaling], {})
