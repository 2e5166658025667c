"""List what is compared: the packaged default and its options beside the papers' methods.

A paper's method keeps its own parameters, and is run at a few strengths around them, since the rewards of the papers
are not ours: one of each, chosen on the tuning prompts, stands in the table beside ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from drawing import Method

from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, FreeDoM, Tilt, UniversalGuidance
from clip_guidance.guidance.modes.blend import Blend

OURS = "CLIP guidance"  # in mode "blend", as the packaged default is
TUNED = {"start": 0.0, "cutouts": 1}  # see tune.py and its curve
DAMPED = {**TUNED, "damping": 0.1}  # see tuning/noisy.md
# a paper's strength belongs to its reward, which is not ours: each is searched on the tuning prompts ...
GRID: dict[str, Sequence[Any]] = {
    "exact": (0.5, 1.0, 2.5, 5.0),
    "DPS": (0.3, 1.0, 3.0),
    "LGD-MC": (0.1, 0.3, 1.0),
    "FreeDoM": (0.1, 0.2, 0.6, 1.5, 3.0),
    "MPGD": (0.2, 0.5, 2.0, 5.0),
    "universal": (0.3, 1.0, 5.0),
    "TFG": ((0.25, 0.25), (0.25, 0.5), (0.25, 1.0), (1.0, 1.0)),
}
# ... and the report takes the best of them, see tuning/papers.md
CHOSEN: dict[str, Sequence[Any]] = {
    "exact": (2.5,),
    "DPS": (1.0, 3.0),
    "LGD-MC": (0.3,),
    "FreeDoM": (1.5,),
    "MPGD": (0.2,),
    "universal": (5.0,),
    "TFG": ((0.25, 0.25),),
}
PLAIN, DEFAULT = "CFG, 3", f"{OURS}, scale 10"
FREE = "without text: "
BOTH = f"{FREE}{OURS}, both, scales 10 and 20"  # two guidances, one in the other
# what the default does with more seconds, from cheap to dear: the papers' methods are compared with what costs as much
BUDGET = (DEFAULT, f"{OURS}, 14 steps, scale 10", f"{OURS}, best of 2, scale 10", f"{OURS}, best of 3, scale 10")


def main_table() -> list[Method]:
    """Every method, for the held-out pairs."""
    return [*without_clip(), *ours(), *papers()]


def short_table() -> list[Method]:
    """Those worth asking about on every other prompt set."""
    return [
        Method("no text", "", use_prompt=False, guidance_scale=1.0),
        Method("text", "", guidance_scale=1.0),
        *(Method("CFG", f"{scale:g}", guidance_scale=scale) for scale in (2.0, 3.0)),
        Method("best of N", "4", best_of=4),
        *(Method(OURS, f"scale {scale:g}", scale=scale, mode="blend", options=TUNED) for scale in (5.0, 10.0)),
        Method(OURS, "best of 4, scale 10", scale=10.0, mode="blend", best_of=4, options=TUNED),
    ]


def without_clip() -> list[Method]:
    """Return what needs no gradient: text, classifier-free guidance, more steps, best of N."""
    return [
        Method("no text", "", use_prompt=False, guidance_scale=1.0),
        Method("text", "", guidance_scale=1.0),
        *(Method("CFG", f"{scale:g}", guidance_scale=scale) for scale in (1.5, 2.0, 3.0, 5.0)),
        *(Method("CFG 3, more steps", f"{steps}", steps=steps) for steps in (20, 40)),
        *(Method("best of N", f"{count}", best_of=count) for count in (2, 4, 8)),
    ]


def ours() -> list[Method]:
    """Return the default, weaker and stronger, with more seconds, and the other modes."""

    def default(name: str, scale: float = 10.0, **changes: Any) -> Method:
        return Method(OURS, f"{name}scale {scale:g}", scale=scale, mode="blend", options=TUNED, **changes)

    return [
        *(default("", scale) for scale in (5.0, 10.0, 20.0)),
        default("14 steps, ", steps=14),
        *(default(f"best of {n}, ", best_of=n) for n in (2, 3)),
        Method(f"{OURS}, x0", "scale 10", scale=10.0, options=TUNED),
        Method(f"{OURS}, x0", "scale 10, damping 0.1", scale=10.0, options=DAMPED),
        Method(f"{OURS}, noisy", "scale 5", scale=5.0, mode="noisy", options=TUNED),
    ]


def tried() -> list[Method]:
    """Return what might have been a better default at as many seconds: see tuning/tried.md."""

    def at_10(name: str, **changes: Any) -> Method:
        return Method(OURS, f"scale 10{name}", scale=10.0, **{"options": TUNED, **changes})

    return [
        at_10(""),
        at_10(", start 0.4", options={**TUNED, "start": 0.4}),
        at_10(", every 2", options={**TUNED, "every": 2}),
        Method(OURS, "scale 20, every 2", scale=20.0, options={**TUNED, "every": 2}),
        at_10(", η 1", eta=1.0),
        *(Method(OURS, f"tilt in {n}, scale 10", scale=10.0, mode=Tilt(n), options=TUNED) for n in (2, 4)),
        at_10(", CFG 5", guidance_scale=5.0),
        at_10(", 14 steps", steps=14),
        *(at_10(f", best of {n}", best_of=n) for n in (2, 3, 4)),
    ]


def papers(strengths: dict[str, Sequence[Any]] | None = None) -> list[Method]:
    """List the papers' methods on top of classifier-free guidance, with η = 1 where they need it.

    Args:
        strengths: of each method; by default those that :data:`CHOSEN` has.
    """
    window = {"start": 0.3, "stop": 0.7}
    make: dict[str, Callable[[Any], Method]] = {
        "exact": lambda s: Method(f"{OURS}, exact", f"scale {s:g}", scale=s, mode="exact", options=TUNED),
        "DPS": lambda s: Method("DPS", f"ζ {s:g}", scale=s, mode=DPS(), eta=1.0),
        "LGD-MC": lambda s: Method("LGD-MC", f"ζ {s:g}", scale=s, mode=LGDMC(samples=4), eta=1.0),
        "FreeDoM": lambda s: Method(
            "FreeDoM", f"ρ {s:g}", scale=1.0, mode=FreeDoM(rho=s), options=window, eta=1.0, times=3
        ),
        "MPGD": lambda s: Method("MPGD", f"ρ {s:g}", scale=1.0, mode=MPGD(rho=s), eta=1.0),
        "universal": lambda s: Method(
            "universal guidance", f"s {s:g}", scale=1.0, mode=UniversalGuidance(s, 2, rate=0.1), times=2
        ),
        "TFG": lambda s: Method(
            "TFG", f"ρ {s[0]:g}, μ {s[1]:g}", scale=1.0, mode=TFG(rho=s[0], mu=s[1], sigma=0.1), eta=1.0
        ),
    }
    return [make[name](strength) for name, found in (strengths or CHOSEN).items() for strength in found]


def text_free() -> list[Method]:
    """Return methods without text: the guide is the only text signal."""
    only = dict(use_prompt=False, guidance_scale=1.0)
    both = Method(f"{OURS}, both", "", scale=10.0, eta=1.0, options={**DAMPED, "noisy_too": 20.0}, **only)
    blend = Method(
        f"{OURS}, blend", "scale 20, weight 2, damping 0.05", scale=20.0, mode=Blend(noisy_weight=2.0), eta=1.0,
        options={**TUNED, "damping": 0.05}, **only,
    )  # fmt: skip
    x0 = Method(f"{OURS}, x0", "scale 10", scale=10.0, options=TUNED, **only)
    noisy = Method(f"{OURS}, noisy", "scale 15, η 1", scale=15.0, mode="noisy", eta=1.0, options=TUNED, **only)
    ours = [
        x0,
        replace(x0, name="scale 10, η 1", eta=1.0),  # the papers' sampler
        noisy,
        blend,
        replace(both, name="scales 10 and 20"),
        replace(both, name="20 steps", steps=20),
        *(replace(both, name=f"best of {n}", best_of=n) for n in (2, 4)),
        replace(both, name="20 steps, best of 2", steps=20, best_of=2),
    ]
    return [
        Method("no text", "", **only),
        Method(f"{FREE}best of N", "8", best_of=8, **only),
        *(replace(method, family=FREE + method.family) for method in ours),
        *(replace(method, family=FREE + method.family, **only) for method in papers()),
    ]


def noisy() -> list[Method]:
    """Return the modes that read the noisy sample, with text and without: see tuning/noisy.md."""
    free, only = FREE, dict(use_prompt=False, guidance_scale=1.0, eta=1.0)

    def blend(scale: float, weight: float, damping: float) -> Method:
        name = f"scale {scale:g}, weight {weight:g}" + (f", damping {damping:g}" if damping else "")
        options = {**TUNED, "damping": damping}
        return Method(f"{OURS}, blend", name, scale=scale, mode=Blend(noisy_weight=weight), options=options)

    def tower(scale: float) -> Method:
        return Method(f"{OURS}, noisy", f"scale {scale:g}", scale=scale, mode="noisy", options=TUNED)

    def damped(scale: float, curvature: float) -> Method:
        name = f"scale {scale:g}, damping {curvature:g}"
        return Method(OURS, name, scale=scale, options={**TUNED, "damping": curvature})

    plain = Method(OURS, "scale 10", scale=10.0, options=TUNED)
    given = [
        Method("CFG", "3"), plain, damped(10.0, 0.1), damped(20.0, 0.2), tower(3.0), tower(5.0),
        blend(10.0, 0.3, 0.0), blend(10.0, 0.6, 0.0), blend(20.0, 0.25, 0.0), blend(20.0, 0.5, 0.05),
        blend(20.0, 0.5, 0.1), blend(40.0, 0.25, 0.1),
    ]  # fmt: skip
    alone = [
        plain, damped(10.0, 0.1), tower(8.0), tower(15.0), blend(15.0, 1.0, 0.0), blend(10.0, 2.0, 0.0),
        blend(10.0, 3.0, 0.0), blend(20.0, 1.0, 0.05), blend(20.0, 2.0, 0.05), blend(40.0, 1.0, 0.1),
    ]  # fmt: skip
    return [*given, *(replace(each, family=free + each.family, **only) for each in alone)]


def in_four_steps(guidance_scale: float) -> list[Method]:
    """Return what four steps can do: guidance, candidates, and noise that gradient ascent finds.

    Args:
        guidance_scale: 3 for the packaged model, 1 for a student that has it in its weights.
    """
    few = {"steps": 4, "guidance_scale": guidance_scale}

    def steered(mode: str) -> Method:
        return Method(f"4 steps, {mode}", "scale 10", scale=10.0, mode=mode, options=TUNED, **few)

    def ascents(count: int) -> Method:
        how = {"ascent": {"steps": count, "learning_rate": 15.0}}
        return Method("4 steps, optimize_noise", f"{count} ascents, rate 15", options=how, **few)

    return [
        Method("4 steps", "", **few),
        Method("4 steps, best of N", "4", best_of=4, **few),
        *(steered(mode) for mode in ("x0", "blend", "noisy")),
        *(ascents(count) for count in (2, 4, 6)),
    ]


def few_steps() -> list[Method]:
    """Return what the packaged model can do in four steps, beside ten of them."""
    beside = [method for method in main_table() if method.title in (PLAIN, DEFAULT, "DPS, ζ 3")]
    return [*beside, *in_four_steps(3.0)]


def student() -> list[Method]:
    """Return what a student of four steps can do, as train_student.py makes one."""
    return in_four_steps(1.0)


def grid() -> list[Method]:
    """Return what ``--sets tuning --table papers`` chooses among."""
    return papers(GRID)


TABLES = {
    "main": main_table, "papers": grid, "tried": tried, "short": short_table, "text-free": text_free, "noisy": noisy,
    "few-steps": few_steps, "student": student,
}  # fmt: skip
