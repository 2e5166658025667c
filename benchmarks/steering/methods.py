"""What is compared. The packaged default, its strengths and its options beside the methods of the papers.

A paper's method keeps its own parameters, and is run at a few strengths around them, since the rewards of the papers
are not ours: the best of each stands in the table beside ours.
"""

from __future__ import annotations

from drawing import Method

from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, FreeDoM, UniversalGuidance

OURS = "CLIP guidance"
TUNED = {"start": 0.0, "cutouts": 1}  # see tune.py and its curve
PLAIN, DEFAULT = "CFG, 3", f"{OURS}, scale 10"  # the two of the README's figure


def main_table() -> list[Method]:
    """Every method, for the held-out pairs."""
    return [*without_clip(), *ours(), *papers(), *text_free()[1:]]


def short_table() -> list[Method]:
    """Those worth asking about on every other prompt set."""
    return [
        Method("no text", "", use_prompt=False, guidance_scale=1.0),
        Method("text", "", guidance_scale=1.0),
        *(Method("CFG", f"{scale:g}", guidance_scale=scale) for scale in (2.0, 3.0)),
        Method("best of N", "4", best_of=4),
        *(Method(OURS, f"scale {scale:g}", scale=scale, options=TUNED) for scale in (5.0, 10.0)),
    ]


def without_clip() -> list[Method]:
    """What needs no gradient: the text alone, classifier-free guidance, more steps, choosing among several."""
    return [
        Method("no text", "", use_prompt=False, guidance_scale=1.0),
        Method("text", "", guidance_scale=1.0),
        *(Method("CFG", f"{scale:g}", guidance_scale=scale) for scale in (1.5, 2.0, 3.0, 5.0)),
        *(Method("CFG 3, more steps", f"{steps}", steps=steps) for steps in (20, 40)),
        *(Method("best of N", f"{count}", best_of=count) for count in (2, 4, 8)),
    ]


def ours() -> list[Method]:
    return [
        *(Method(OURS, f"scale {scale:g}", scale=scale, options=TUNED) for scale in (2.5, 5.0, 10.0, 20.0)),
        Method(OURS, "CFG 2, scale 10", scale=10.0, guidance_scale=2.0, options=TUNED),
        Method(OURS, "best of 2, scale 10", scale=10.0, best_of=2, options=TUNED),
        Method(OURS, "η 1, scale 10", scale=10.0, eta=1.0, options=TUNED),
        *(Method("CLIP guidance, exact", f"scale {s:g}", scale=s, mode="exact", options=TUNED) for s in (2.5, 5.0)),
    ]


def papers() -> list[Method]:
    """On top of classifier-free guidance, in the papers' samplers: η = 1 where they need its noise."""
    window = {"start": 0.3, "stop": 0.7}
    return [
        *(Method("DPS", f"ζ {s:g}", scale=s, mode=DPS(), eta=1.0) for s in (0.3, 1.0)),
        *(Method("LGD-MC", f"ζ {s:g}", scale=s, mode=LGDMC(samples=4), eta=1.0) for s in (0.3, 1.0)),
        *(
            Method("FreeDoM", f"ρ {rho:g}", scale=1.0, mode=FreeDoM(rho=rho), options=window, eta=1.0, times=3)
            for rho in (0.2, 0.6)
        ),
        *(Method("MPGD", f"ρ {rho:g}", scale=1.0, mode=MPGD(rho=rho), eta=1.0) for rho in (0.5, 2.0, 5.0)),
        *(
            Method("universal guidance", f"s {s:g}", scale=1.0, mode=UniversalGuidance(s, 2, rate=0.1), times=2)
            for s in (1.0, 3.0)
        ),
        *(
            Method("TFG", f"ρ {rho:g}, μ {mu:g}", scale=1.0, mode=TFG(rho=rho, mu=mu, sigma=0.1), eta=1.0)
            for rho, mu in ((0.25, 0.25), (0.25, 1.0))
        ),
    ]


def text_free() -> list[Method]:
    """The guide is the only text signal."""
    only = dict(use_prompt=False, guidance_scale=1.0)
    free = "without text: "
    return [
        Method("no text", "", **only),
        Method(f"{free}best of N", "8", best_of=8, **only),
        *(Method(f"{free}{OURS}", f"scale {scale:g}", scale=scale, options=TUNED, **only) for scale in (10.0, 20.0)),
        Method(f"{free}{OURS}, exact", "scale 5", scale=5.0, mode="exact", options=TUNED, **only),
        Method(f"{free}DPS", "ζ 1", scale=1.0, mode=DPS(), eta=1.0, **only),
        Method(f"{free}MPGD", "step 0.2", scale=1.0, mode=MPGD(step_size=0.2), **only),
        Method(f"{free}TFG", "ρ 0.25, μ 1", scale=1.0, mode=TFG(rho=0.25, mu=1.0, sigma=0.1), eta=1.0, **only),
    ]


TABLES = {"main": main_table, "short": short_table, "text-free": text_free}
