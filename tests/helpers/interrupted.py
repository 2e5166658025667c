"""A training program that is interrupted, and goes on."""

import pytest
from accelerate import Accelerator


def train_interrupted(program, settings):
    """Run ``program.train`` until its second step, at which it is interrupted, and then once more to the end."""
    fit = program.fit

    def stopped(accelerator, model, loss, *others, **more):
        def killed(model, step):
            if step == 1:
                raise KeyboardInterrupt
            return loss(model, step)

        fit(accelerator, model, killed, *others, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            program.train(settings, Accelerator(cpu=True))
    program.train(settings, Accelerator(cpu=True))
