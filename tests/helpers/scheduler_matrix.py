"""Every scheduler that can be guided, with each of its prediction types and spacings of sigmas, as a table."""

import copy
import functools
import inspect
from dataclasses import dataclass, field

import diffusers
import pytest
from diffusers.utils import is_scipy_available, is_torchsde_available


@dataclass(frozen=True, eq=False)  # compared, and hashed for caches, by identity
class Setting:
    """A row of the table; ``prediction`` is what the denoiser gives, ``config`` what the scheduler is told."""

    scheduler: str
    prediction: str
    config: dict = field(default_factory=dict)
    note: str = ""

    def make(self):
        """A scheduler of one's own. Some compute a thousand timesteps when they are built."""
        return copy.deepcopy(self._made)

    @functools.cached_property
    def _made(self):
        cls = getattr(diffusers, self.scheduler)
        accepted = inspect.signature(cls.__init__).parameters
        known = {"epsilon", "v_prediction", "sample", "flow_prediction", "trigflow"}
        name = {"edm_epsilon": "epsilon", "edm_v": "v_prediction"}.get(self.prediction, self.prediction)
        config = {"clip_sample": False, "clip_denoised": False, "noise_sampler_seed": 0, "set_alpha_to_one": True}
        if name in known:
            config["prediction_type"] = name
        return cls(**{**{k: v for k, v in config.items() if k in accepted}, **self.config})

    @property
    def name(self):
        return " ".join(filter(None, (self.scheduler.removesuffix("Scheduler"), self.prediction, self.note)))

    @property
    def steps(self):
        """The fewest and the most steps that the scheduler runs with."""
        return STEPS.get(self.scheduler.removesuffix("Scheduler") + f" {self.note}".rstrip(), (1, 1000))


EV, EVS = ("epsilon", "v_prediction"), ("epsilon", "v_prediction", "sample")
SPACED = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
FLOW = {"prediction": ("flow_prediction",), "use_flow_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
TRAILING = {"timestep_spacing": "trailing"}
#: As in Stable Diffusion's own scheduler_config.json.
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

#: Fewest and most steps of those that do not run with any number.
STEPS = {
    "PNDM": (4, 1000),  # its Runge-Kutta start takes four
    "UnCLIP": (2, 1000),
    "FlowMatchEulerDiscrete terminal": (2, 1000),
    "LCM": (1, 50),  # original_inference_steps
    "TCD": (1, 50),
    "CMStochasticIterative": (1, 40),  # num_train_timesteps
}

#: Scheduler -> its prediction types and variants; a variant may bring prediction types of its own.
TABLE = {
    "DDIM": (
        EVS,
        {
            "zero-snr": {"prediction": ("v_prediction", "sample"), **ZERO_SNR},
            "stable-diffusion": {"prediction": ("epsilon",), "set_alpha_to_one": False, **STABLE_DIFFUSION},
            "trailing": {"prediction": ("epsilon",), **TRAILING},
        },
    ),
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
            "continuous": {
                "prediction": ("v_prediction",),
                "timestep_type": "continuous",
                "use_karras_sigmas": True,
                "sigma_min": 0.002,
                "sigma_max": 700.0,
            },
            "stable-diffusion": {"prediction": ("epsilon",), "timestep_spacing": "leading", **STABLE_DIFFUSION},
            "trailing": {"prediction": ("epsilon",), **TRAILING},
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
            "stable-diffusion": {"prediction": ("epsilon",), "timestep_spacing": "leading", **STABLE_DIFFUSION},
            "trailing": {"prediction": ("epsilon",), **TRAILING},
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


#: Of schedulers, at what they themselves do.
_EXPECTED_WARNINGS = (
    "__array_wrap__ must accept:DeprecationWarning",  # KDPM2 under numpy 2
    ".*algorithm_types.*is deprecated:FutureWarning",
    "Should have t[ab]:UserWarning",  # torchsde's rounding of times
)


def _marks(setting):
    scipy = setting.scheduler == "LMSDiscreteScheduler" or setting.config.get("use_beta_sigmas")
    torchsde = setting.scheduler in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
    for message in _EXPECTED_WARNINGS:
        yield pytest.mark.filterwarnings(f"ignore:{message}")
    if not hasattr(diffusers, setting.scheduler):
        yield pytest.mark.skip(reason=f"diffusers {diffusers.__version__} is without it")
    if scipy and not is_scipy_available():
        yield pytest.mark.skip(reason="needs scipy")
    if torchsde and not is_torchsde_available():
        yield pytest.mark.skip(reason="needs torchsde")


def settings():
    """All rows."""
    for name, (predictions, variants) in TABLE.items():
        for note, config in {"": {}, **variants}.items():
            config = dict(config)
            for prediction in config.pop("prediction", predictions):
                yield Setting(f"{name}Scheduler", prediction, config, note)


def summary():
    """(scheduler, its prediction types, its spacings and other variants) of every scheduler, for the documentation."""
    rows = {}
    for setting in settings():
        predictions, notes = rows.setdefault(setting.scheduler, ({}, {}))
        predictions[setting.prediction] = None
        if setting.note:
            notes[setting.note] = None
    return [(name, tuple(predictions), tuple(notes)) for name, (predictions, notes) in rows.items()]


SETTINGS = list(settings())
#: One row a scheduler.
ONE_EACH = list({setting.scheduler: setting for setting in reversed(SETTINGS)}.values())[::-1]
#: One row of each kind of arithmetic: a solver of one step and of several, with variance preserved or not, and a flow.
FEW = [
    setting
    for setting in ONE_EACH
    if setting.scheduler.removesuffix("Scheduler")
    in ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "FlowMatchEulerDiscrete")
]


def matrix(rows=SETTINGS, default=ONE_EACH):
    """The rows as parameters named ``setting``; the default run has those in ``default``, --full has all."""

    def marks(setting):
        return [*_marks(setting), *([] if setting in default else [pytest.mark.slow])]

    return pytest.mark.parametrize("setting", [pytest.param(s, id=s.name, marks=marks(s)) for s in rows])
