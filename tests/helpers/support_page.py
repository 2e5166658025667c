"""docs/support.md: which pipelines and schedulers of diffusers can be guided, from the package's own tables."""

from pathlib import Path

from clip_guidance.guidance.adapters.unsupported import LATENT_ONLY, UNSUPPORTED_PIPELINES, UNSUPPORTED_SCHEDULERS
from helpers.pipeline_zoo import NO_EXACT, PIPELINES
from helpers.scheduler_matrix import settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
DIFFUSION = {
    key: {}
    for key in [
        "DDIM",
        "DDPM",
        "PNDM",
        "LMSDiscrete",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "DPMSolverSDE",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "UniPCMultistep",
        "DEISMultistep",
        "SASolver",
        "LCM",
        "TCD",
    ]
} | {"PNDM": {"skip_prk_steps": True}}  # as in every pipeline on the hub; the others need more steps than three
_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW = {
    **{key: {} for key in ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM"]},
    **dict.fromkeys(["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"], _SOLVER),
}
COLUMNS = [*DIFFUSION, *(name for name in FLOW if name not in DIFFUSION)]

HEAD = """# What can be guided

Written by `pytest tests/guidance/adapters/test_support.py --full --write-docs` with diffusers {version}; the tests fail
when it is not what they find. Every pipeline below is built from tiny random parts and run unguided, with `scale=0`
(bit-identical) and guided in both modes by a simple reward, which must rise.

| | pipelines | schedulers |
| --- | --- | --- |
| guided in modes `"x0"` and `"exact"` | {exact} | {schedulers} |
| guided in mode `"x0"` alone | {x0} | |
| guided by rewards on latents alone, with `space="latent"` | {latent} | |
| refused, with the reason | {refused} | {refused_schedulers} |

A pipeline that is tested in several variants, such as with a LoRA or an IP-Adapter, is counted once.
"""


def page(rows):
    """The whole page."""
    return "\n".join(
        [
            _head(),
            *_matrix(rows),
            *_pipelines(),
            *_schedulers(),
            *_reasons("Steered by a reward on latents alone", LATENT_ONLY, '`space="latent"` works; images do not.'),
            *_reasons("Pipelines that cannot be guided", UNSUPPORTED_PIPELINES, "`attach` says why."),
            *_reasons("Schedulers that cannot be guided", UNSUPPORTED_SCHEDULERS, "`attach` says why."),
        ]
    )


def _head():
    """What the page is, and the numbers of classes that its tables list."""
    import diffusers

    guided = {key.split(" + ")[0] for key in PIPELINES}
    exact = {key.split(" + ")[0] for key in PIPELINES if key not in NO_EXACT}
    return HEAD.format(
        version=".".join(diffusers.__version__.split(".")[:2]),
        exact=len(exact),
        x0=len(guided - exact),
        latent=len(LATENT_ONLY),
        refused=len(UNSUPPORTED_PIPELINES),
        schedulers=len({setting.scheduler for setting in settings()}),
        refused_schedulers=len(UNSUPPORTED_SCHEDULERS),
    )


def _matrix(rows):
    yield "## Pipeline × scheduler\n"
    yield "✓ guided, ✗ refused by `attach` with the reason, — diffusers itself does not run this pair, empty: a"
    yield "scheduler for another kind of model.\n"
    yield "| pipeline | " + " | ".join(COLUMNS) + " |"
    yield "| --- |" + " --- |" * len(COLUMNS)
    for key, outcomes in rows.items():
        yield f"| {key.removesuffix('Pipeline')} | " + " | ".join(outcomes[name] for name in COLUMNS) + " |"
    yield ""


def _pipelines():
    yield "## Pipelines\n"
    yield "| pipeline | modes |"
    yield "| --- | --- |"
    for key in sorted(PIPELINES):
        yield f"| {key} | " + (f"x0 ({NO_EXACT[key]})" if key in NO_EXACT else "x0, exact") + " |"
    yield ""


def _schedulers():
    found = {}
    for setting in settings():
        predictions, notes = found.setdefault(setting.scheduler, ({}, {}))
        predictions[setting.prediction] = notes[setting.note] = None
    yield "## Schedulers\n"
    yield "Each with these predictions and variants against a Gaussian whose tilted mean is known.\n"
    yield "| scheduler | predictions | variants |"
    yield "| --- | --- | --- |"
    for name, (predictions, notes) in sorted(found.items()):
        yield f"| {name} | {', '.join(predictions)} | {', '.join(filter(None, notes))} |"
    yield ""


def _reasons(title, table, note):
    by_reason = {}
    for name, reason in table.items():
        by_reason.setdefault(reason, []).append(name)
    yield f"## {title}\n"
    yield note + "\n"
    yield "| reason | classes |"
    yield "| --- | --- |"
    for reason, names in by_reason.items():
        yield f"| {reason} | {', '.join(sorted(names))} |"
    yield ""
