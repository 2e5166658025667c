"""Whatever a method's argument is given: it is one of those documented, or refused by name, and saved as it is."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_guidance.guidance.config import mode_from_config, mode_to_config
from clip_guidance.guidance.methods import METHODS, recurrent
from clip_guidance.guidance.methods.tfg import SCHEDULES

COUNTS = {"samples": 1, "iterations": 1, "steps": 1, "backward_steps": 0, "times": 1}
NOT_NEGATIVE, OPTIONAL = ("sigma", "radius"), ("step_size", "rho_without")
ARGUMENTS = [(cls, field.name) for cls in METHODS for field in fields(cls)]
junk = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()),
    *(st.decimals(), st.fractions(), st.lists(st.floats()), st.dictionaries(st.text(), st.integers())),
    st.sampled_from(
        [10**5000, -(10**400), 2**43, 10_000, 10_001, 1e9, 1e9 + 1, "x" * 9999, "0.5", object(), [[["x" * 99] * 9] * 9]]
    ),
    st.sampled_from([*SCHEDULES, np.float64(0.5), np.float32(0.5), np.zeros(3), torch.zeros(3), torch.tensor(1), int]),
)


def is_documented(name, value):
    if name.endswith("_schedule"):
        return type(value) is str and value in SCHEDULES
    if type(value) not in (int, float, np.float64):
        return value is None and name in OPTIONAL
    if name in COUNTS:
        return type(value) is int and COUNTS[name] <= value <= 10_000
    if name == "seed":
        return type(value) is int and abs(value) < 2**43
    return (0 if name in NOT_NEGATIVE else -1e9) <= value <= 1e9


@given(st.sampled_from(ARGUMENTS), junk)
def test_an_argument_is_documented_and_saved_or_refused_by_its_name(argument, value):
    cls, name = argument
    if is_documented(name, value):
        method = cls(**{name: value})
        assert mode_from_config(json.loads(json.dumps(mode_to_config(method)))) == method
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        cls(**{name: value})
    message = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError) and len(message) <= 300 and name in message


@settings(max_examples=15)
@given(st.sampled_from(["times", "window", "seed"]), st.one_of(junk, st.tuples(junk, junk)))
def test_recurrence_repeats_as_often_as_it_says_or_refuses(name, value):
    scheduler = DDIMScheduler()
    if name == "window":
        pair = type(value) is tuple and all(type(each) in (int, float, np.float64) for each in value)
        documented = pair and 0 <= value[0] < value[1] <= 1
    else:
        documented = is_documented(name, value)
    if not documented:
        with pytest.raises((ValueError, TypeError), match=name) as caught:
            recurrent(scheduler, **{"times": 2, name: value}).__enter__()
        assert len(str(caught.value)) <= 300
    else:
        with recurrent(scheduler, **{"times": 2, name: value}):
            start, stop = value if name == "window" else (0, 1)
            inside = sum(start <= i / 4 < stop for i in range(4))
            if inside:
                scheduler.set_timesteps(4)
                assert len(scheduler.timesteps) == 4 + inside * ((value if name == "times" else 2) - 1)
    assert "step" not in vars(scheduler) and math.prod(scheduler.timesteps.shape) >= 4
