"""The noise level at which ComfyUI's sampler stands.

ComfyUI counts noise in one number, sigma, whose meaning is the model's: x = x₀ + sigma·ε for epsilon, v and EDM models,
x = (1 − sigma)·x₀ + sigma·ε for flow models. The model's sampling object makes noisy samples by this very equation, so
it is asked for the two weights.
"""

import torch

#: Base classes of ComfyUI's sampling objects that noise a sample so, and predict x₀ from it.
KNOWN = ("EPS", "CONST", "COSMOS_RFLOW")  # V_PREDICTION, EDM and X0 are EPS
UNKNOWN = ("IMG_TO_IMG",)  # an EPS whose sample holds no noise


def check_prediction(model_sampling) -> None:
    """Refuse a model of which it is not known what it predicts.

    Raises:
        ValueError: The sampling object is of none of the known classes.
    """
    names = [each.__name__ for each in type(model_sampling).__mro__]
    if not set(names) & set(KNOWN) or set(names) & set(UNKNOWN):
        found = ", ".join(name for name in names if name not in ("Module", "object"))
        raise ValueError(
            "CLIP guidance knows models that predict noise, v, EDM's output, a flow or the clean sample (EPS, "
            f"V_PREDICTION, EDM, CONST, X0, COSMOS_RFLOW); this model's sampling is {found[:120]}"
        )


def noise_level(model_sampling, sigma: torch.Tensor) -> tuple[float, float]:
    """Return α and σ of x = αx₀ + σε at ComfyUI's ``sigma``, one number."""
    sigma = sigma.double().cpu()
    none, one = torch.zeros(1, dtype=sigma.dtype), torch.ones(1, dtype=sigma.dtype)
    return float(model_sampling.noise_scaling(sigma, none, one)), float(model_sampling.noise_scaling(sigma, one, none))


def step_of(sigma: float, sigmas: torch.Tensor) -> int:
    """Return which of a run's steps a forward at ``sigma`` belongs to; a stage between two sigmas is the earlier's."""
    begun = int((sigmas[:-1].double().cpu() >= sigma * (1 - 1e-5)).sum())  # samplers round sigma on its way
    return max(begun - 1, 0)
