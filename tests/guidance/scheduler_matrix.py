"""Every scheduler that can be guided, with each of its prediction types and spacings of sigmas, as a table."""

import inspect
from dataclasses import dataclass, field

import diffusers
import pytest
from diffusers.utils import is_scipy_available, is_torchsde_available


@dataclass(frozen=True)
class Setting:
    """A row of the table; ``prediction`` is what the denoiser gives, ``config`` what the scheduler is told."""

    scheduler: str
    prediction: str
    config: dict = field(default_factory=dict)
    note: str = ""

    def make(self):
        cls = getattr(diffusers, self.scheduler)
        accepted = inspect.signature(cls.__init__).parameters
        known = {"epsilon", "v_prediction", "sample", "flow_prediction", "trigflow"}
        name = {"edm_epsilon": "epsilon", "edm_v": "v_prediction"}.get(self.prediction, self.prediction)
        config = {"clip_sample": False, "clip_denoised": False, "noise_sampler_seed": 0, "set_alpha_to_one": True}
        if name in known:
            config["prediction_type"] = name
        return cls(**{k: v for k, v in config.items() if k in accepted}, **self.config)

    @property
    def name(self):
        return " ".join(filter(None, (self.scheduler.removesuffix("Scheduler"), self.prediction, self.note)))


EV, EVS = ("epsilon", "v_prediction"), ("epsilon", "v_prediction", "sample")
SPACED = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
FLOW = {"prediction": ("flow_prediction",), "use_flow_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}

#: Scheduler -> its prediction types and variants; a variant may bring prediction types of its own.
TABLE = {
    "DDIM": (EVS, {"zero-snr": {"prediction": ("v_prediction", "sample"), **ZERO_SNR}}),
    "DDIMParallel": (EVS, {}),
    "DDPM": (EVS, {}),
    "DDPMParallel": (EVS, {}),
    "DDPMWuerstchen": (("epsilon",), {}),
    "PNDM": (EV, {"plms": {"skip_prk_steps": True}}),
    "IPNDM": (("v_prediction",), {}),
    "LMSDiscrete": (EVS, SPACED),
    "EulerDiscrete": (
        EVS,
        {
            **SPACED,
            "zero-snr": {"prediction": ("v_prediction",), **ZERO_SNR},
            "sigma-min": SIGMA_MIN,
            "continuous": {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700},
        },
    ),
    "EulerAncestralDiscrete": (EV, {}),
    "HeunDiscrete": (EVS, SPACED),
    "KDPM2Discrete": (EV, SPACED),
    "KDPM2AncestralDiscrete": (EV, SPACED),
    "DPMSolverSDE": (EV, SPACED),
    "DPMSolverMultistep": (
        EVS,
        {
            **SPACED,
            "lu": {"use_lu_lambdas": True},
            "order-3": {"solver_order": 3},
            "sde++": {"algorithm_type": "sde-dpmsolver++"},
            "dpm": {"algorithm_type": "dpmsolver", **SIGMA_MIN},
            "sde": {"algorithm_type": "sde-dpmsolver", **SIGMA_MIN},
            "zero-snr": {"prediction": ("v_prediction",), **ZERO_SNR},
            "flow": FLOW,
            "flow-shift": {"flow_shift": 3.0, **FLOW},
            "flow-mu": {"use_dynamic_shifting": True, **FLOW},
        },
    ),
    "DPMSolverSinglestep": (
        EVS,
        {
            **SPACED,
            "order-3": {"solver_order": 3},
            "sde++": {"algorithm_type": "sde-dpmsolver++"},
            "dpm": {"algorithm_type": "dpmsolver", **SIGMA_MIN},
            "flow": FLOW,
        },
    ),
    "UniPCMultistep": (EVS, {**SPACED, "eps": {"predict_x0": False, **SIGMA_MIN}, "flow": FLOW}),
    "DEISMultistep": (EVS, {**SPACED, "flow": FLOW}),
    "SASolver": (EVS, {**SPACED, "eps": {"algorithm_type": "noise_prediction"}, "flow": FLOW}),
    "LCM": (EVS, {}),
    "TCD": (EVS, {}),
    "EDMEuler": (("edm_epsilon", "edm_v"), {"exponential": {"sigma_schedule": "exponential"}}),
    "EDMDPMSolverMultistep": (
        ("edm_epsilon", "edm_v"),
        {"exponential": {"sigma_schedule": "exponential"}, "sde++": {"algorithm_type": "sde-dpmsolver++"}},
    ),
    "CosineDPMSolverMultistep": (("edm_epsilon", "edm_v"), {}),
    "CMStochasticIterative": (("consistency",), {}),
    "SCM": (("trigflow",), {}),
    "UnCLIP": (("epsilon", "sample"), {}),
    "CogVideoXDDIM": (EVS, {"zero-snr": {"prediction": ("v_prediction",), **ZERO_SNR}}),
    "CogVideoXDPM": (EVS, {}),
    "FlowMatchEulerDiscrete": (
        ("flow_prediction",),
        {
            **SPACED,
            "shift": {"shift": 3.0},
            "mu": {"use_dynamic_shifting": True},
            "terminal": {"shift_terminal": 0.1},
            "stochastic": {"stochastic_sampling": True},
            "inverted": {"prediction": ("reversed_flow",), "invert_sigmas": True},
        },
    ),
    "FlowMatchHeunDiscrete": (("flow_prediction",), {"shift": {"shift": 3.0}}),
    "FlowMatchLCM": (("flow_prediction",), {**SPACED, "shift": {"shift": 3.0}}),
    "LTXEulerAncestralRF": (("flow_prediction",), {}),
    "MiniMaxH3": (("reversed_flow",), {}),
}


def _marks(setting):
    scipy = setting.scheduler == "LMSDiscreteScheduler" or setting.config.get("use_beta_sigmas")
    torchsde = setting.scheduler in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
    if scipy and not is_scipy_available():
        return pytest.mark.skip(reason="needs scipy")
    if torchsde and not is_torchsde_available():
        return pytest.mark.skip(reason="needs torchsde")
    return ()


def settings():
    """All rows."""
    for name, (predictions, variants) in TABLE.items():
        for note, config in {"": {}, **variants}.items():
            config = dict(config)
            for prediction in config.pop("prediction", predictions):
                yield Setting(f"{name}Scheduler", prediction, config, note)


def matrix(rows=None):
    """The rows as parameters named ``setting``."""
    rows = list(settings()) if rows is None else rows
    return pytest.mark.parametrize("setting", [pytest.param(s, id=s.name, marks=_marks(s)) for s in rows])
