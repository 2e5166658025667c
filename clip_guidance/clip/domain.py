"""The domain of a CLIP: the kind of images and texts that it was trained on, and so can judge.

An image is unlike the training images where its embedding z is likelier as one of quite other images: both kinds are
described by a Gaussian, and their log-likelihoods compared (the relative Mahalanobis distance of Ren et al. 2021,
arXiv:2106.09022, equation 4, with other images as the background). The comparison is quadratic in z,

    u(z) = zᵀAz + bᵀz + c > 0,        A = ½ (Σ⁻¹ − Σ'⁻¹)

where c holds the threshold, a quantile over held-out images of the domain. A text is unlike the training
captions where it has a word that none of them has, or a medium ("painting of") that none of them names.

``training/domain_statistics.py`` measures these and writes them beside the weights, as ``domain.safetensors``.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_guidance._files import write_atomically
from clip_guidance.clip.hub import PACKAGED, ModelError, packaged_models

if TYPE_CHECKING:
    from clip_guidance.clip.dual_encoder import DualEncoder

FILE = "domain.safetensors"
RATE = 0.02  # share of the domain's own images that may be called unlike
_MEANS_LITTLE = "what it says of others means little"
_CURE = "use a CLIP that knows them, such as --model openai/clip-vit-base-patch32"
_KEY = "clip_guidance_domain"  # of the metadata
_WORD = re.compile(r"[^\W_]+")
_MEDIUM = re.compile(r"([^\W_]+) of\b")
_COMMON = frozenset(  # words that say nothing about what is to be seen
    _WORD.findall(
        "a an the of and or with without by at in on to from for into over under is are as its his her my your their "
        "this that these those it he she they"
    )
)


@dataclass(frozen=True)
class Domain:
    """What a CLIP knows; see the module.

    Attributes:
        name: Of what it knows, for messages: "emoji of 64 pixels".
        fingerprint: Of the CLIP that made the embeddings.
        quadratic: A, float64 (d, d).
        linear: b, float64 (d,).
        constant: c, float64, one number.
        words: Words of the training captions, in small letters.
        media: The words that stand before "of" in the training captions.
    """

    name: str
    fingerprint: str
    quadratic: Tensor
    linear: Tensor
    constant: Tensor
    words: frozenset[str] = frozenset()
    media: frozenset[str] = frozenset()

    def unlike(self, embeds: Tensor) -> Tensor:
        """Return which embeddings (n, d) are of images unlike the training images, as bools (n,)."""
        z = embeds.detach().cpu().double()
        return ((z @ self.quadratic) * z).sum(-1) + z @ self.linear + self.constant > 0

    def foreign_words(self, text: str) -> list[str]:
        """List the words and media of a text that no training caption has; none where it has no word list."""
        words = _WORD.findall(text.lower())
        unknown = [word for word in words if word not in self.words and word not in _COMMON]
        media = _MEDIUM.findall(text.lower())
        new = [f"{word} of" for word in media if word in self.words and word not in self.media]
        return list(dict.fromkeys([*unknown, *new])) if self.words else []

    def save(self, folder: str | Path) -> None:
        """Write ``domain.safetensors`` into the folder of a CLIP."""
        about = {"name": self.name, "fingerprint": self.fingerprint}
        about |= {"words": " ".join(sorted(self.words)), "media": " ".join(sorted(self.media))}
        parts = {"quadratic": self.quadratic, "linear": self.linear, "constant": self.constant}
        tensors = {name: part.float().contiguous() for name, part in parts.items()}
        with write_atomically(Path(folder, FILE)) as partial:
            save_file(tensors, partial, {_KEY: json.dumps(about)})


def fit_domain(
    clip: DualEncoder, name: str, own: Tensor, held_out: Tensor, other: Tensor, captions: Iterable[str] = ()
) -> Domain:
    """Measure the domain of a CLIP.

    Args:
        clip: The CLIP that made the embeddings.
        name: Of what it knows, for messages.
        own: Embeddings (n, d) of the training images, more than d.
        held_out: Embeddings of images of the same kind that it was not trained on; they set the threshold, such that
            half of ``RATE`` of them are called unlike. The other half is for images of the same kind that were not
            there to measure on, such as generated ones.
        other: Embeddings (m, d) of images of other kinds, such as photographs.
        captions: The training captions.

    Raises:
        ValueError: There are too few embeddings, or some are not finite.
    """
    for kind, embeds in (("own", own), ("held_out", held_out), ("other", other)):
        if len(embeds) < 2 or not embeds.isfinite().all():
            raise ValueError(f"{kind}: expected at least 2 finite embeddings, got {len(embeds)}")
    inside, outside = _gaussian(own, 0.01), _gaussian(other, 0.1)  # fewer other images: held closer to a sphere
    quadratic, linear = (a - b for a, b in zip(inside, outside, strict=True))
    z = held_out.cpu().double()
    u = ((z @ quadratic) * z).sum(-1) + z @ linear
    texts = [text.lower() for text in captions]
    words = frozenset(word for text in texts for word in _WORD.findall(text))
    media = frozenset(word for text in texts for word in _MEDIUM.findall(text))
    return Domain(name, clip.fingerprint(), quadratic, linear, -torch.quantile(u, 1 - RATE / 2), words, media)


def _gaussian(embeds: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the quadratic and the linear part of a Gaussian's negative log-likelihood."""
    x = embeds.cpu().double()
    mean, covariance = x.mean(0), x.T.cov(correction=0)
    covariance += shrinkage * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    precision = torch.linalg.inv(covariance)
    precision = (precision + precision.T) / 2
    return precision / 2, -precision @ mean


def load_domain(name_or_path: str | Path) -> Domain | None:
    """Load the domain of a packaged CLIP or of a CLIP's folder; None where there is none.

    Raises:
        ModelError: The file is damaged.
    """
    name = str(name_or_path)
    if not name:  # a CLIP that was made in memory
        return None
    path = (PACKAGED / name / "clip" if name in packaged_models() else Path(name)) / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()[_KEY])
            tensors = {key: file.get_tensor(key).double() for key in ("quadratic", "linear", "constant")}
        words, media = (frozenset(about[key].split()) for key in ("words", "media"))
        return Domain(str(about["name"]), str(about["fingerprint"]), **tensors, words=words, media=media)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: expected what training/domain_statistics.py writes, got {error!r:.100}") from error


@dataclass
class TextCheck:
    """Count the texts with words that a packaged model never read.

    Args:
        domain: What the model knows; None counts none.

    Attributes:
        seen: Number of texts; of equal ones each counts.
        foreign: Number of them with such words.
        example: The first of these.
        words: Its words, or its media ("painting of"), that no training caption has.
    """

    domain: Domain | None
    seen: int = 0
    foreign: int = 0
    example: str = ""
    words: list[str] = field(default_factory=list)

    def add(self, texts: Iterable[str]) -> TextCheck:
        """Count some texts."""
        for text in texts:
            self.seen += 1
            if self.domain is not None and (words := self.domain.foreign_words(text)):
                self.foreign += 1
                self.example, self.words = self.example or text, self.words or words
        return self

    def message(self, name: str, does: str, cure: str, kind: str = "prompts") -> str | None:
        """Return what to tell of them; None where there are none.

        Args:
            name: Name of the model.
            does: What it does with other texts than it knows, to complete a sentence.
            cure: What to do.
            kind: What the texts are, in the plural.
        """
        if self.domain is None or not self.foreign:
            return None
        return (
            f"{self.foreign} of {self.seen} {kind} have words that {name} was not trained on, such as "
            f"{', '.join(map(repr, self.words[:3]))} in {self.example[:80]!r}: it knows {self.domain.name} and {does}; "
            f"{cure}"
        )


@dataclass
class DomainCheck:
    """Count the images of a run that are unlike what a CLIP knows.

    Args:
        clip: The CLIP, or a reward; one without statistics, or with weights that were changed after they were measured,
            counts none.

    Attributes:
        seen: Number of images.
        unlike: Number of them that are unlike the training images.
        texts: Count of the texts that they are compared with.
    """

    clip: Any
    seen: int = 0
    unlike: int = 0
    domain: Domain | None = field(init=False)
    texts: TextCheck = field(init=False)

    def __post_init__(self) -> None:
        found = load_domain(getattr(self.clip, "name_or_path", ""))
        self.domain = found if found is not None and found.fingerprint == self.clip.fingerprint() else None
        self.texts = TextCheck(self.domain)

    def add(self, embeds: Tensor) -> None:
        """Count the images of some embeddings (n, d)."""
        if self.domain is not None and len(embeds):
            self.seen += len(embeds)
            self.unlike += int(self.domain.unlike(embeds).sum())

    def message(self) -> str | None:
        """Return what to tell at the end of a run, of the images or else of the texts; None where chance explains it.

        Of n images of the domain, as many as were found are called unlike by chance with at most the probability
        ``RATE``, whatever n.
        """
        if self.domain is None or not self.unlike or chance(self.unlike, self.seen) > RATE:
            return self.texts.message(str(self.clip.name_or_path), _MEANS_LITTLE, _CURE)
        return (
            f"{self.unlike} of {self.seen} images ({self.unlike / self.seen:.0%}) are unlike those that "
            f"{self.clip.name_or_path} was trained on, {self.domain.name}: what it says of them means little; {_CURE}"
        )

    def warn(self) -> None:
        """Warn of what :meth:`message` tells."""
        if message := self.message():
            warnings.warn(message, stacklevel=3)


def chance(unlike: int, seen: int) -> float:
    """Return the probability that at least so many of the domain's own images are called unlike (binomial).

    Example:
        >>> from clip_guidance.clip.domain import chance
        >>> round(chance(1, 1), 6), round(chance(2, 2), 6)
        (0.02, 0.0004)
    """
    log_rate, log_rest = math.log(RATE), math.log1p(-RATE)

    def log_ways(k: int) -> float:
        return math.lgamma(seen + 1) - math.lgamma(k + 1) - math.lgamma(seen - k + 1)

    return 1 - math.fsum(math.exp(log_ways(k) + k * log_rate + (seen - k) * log_rest) for k in range(unlike))


def foreign_prompts(name_or_path: str | Path, prompts: Iterable[str]) -> str | None:
    """Return what to tell of prompts that a packaged pipeline cannot draw; None where there are none."""
    found = TextCheck(load_domain(name_or_path)).add(dict.fromkeys(prompts))
    cure = "use a model that knows them, such as --model stable-diffusion-v1-5/stable-diffusion-v1-5"
    return found.message(str(name_or_path), "draws nothing else", cure)


def foreign_texts(name_or_path: str | Path, texts: Iterable[str], kind: str = "prompts") -> str | None:
    """Return what to tell of texts that a packaged CLIP cannot judge by; None where there are none.

    Args:
        name_or_path: The CLIP.
        texts: The texts.
        kind: What they are, in the plural: "prompts", "labels".
    """
    found = TextCheck(load_domain(name_or_path)).add(dict.fromkeys(texts))
    return found.message(str(name_or_path), _MEANS_LITTLE, _CURE, kind)
