"""Attaching: what it leaves alone, nesting, batches, the window of steps."""

import inspect

import pytest
import torch
from helpers.factories import Recorder, generate
from helpers.minimal_pipeline import Recording, brightness, loop, minimal_pipeline, modes, schedulers

from clip_guidance.guidance import CLIPGuidance, Guidance

# ---------------------------------------------------------------- nothing is changed that should not be


@schedulers
@modes
def test_scale_zero_is_bit_identical_and_does_no_work(tiny_pipeline, scheduler, mode):
    pipe, reward = tiny_pipeline(scheduler), Recording()
    plain = generate(pipe)
    with Guidance(reward, scale=0.0, mode=mode).attach(pipe):
        assert "step" not in vars(pipe.scheduler)
        assert not pipe.unet._forward_pre_hooks
        assert generate(pipe).equal(plain)
    assert not reward.inputs


@schedulers
@modes
def test_after_the_block_the_pipeline_is_as_before(tiny_pipeline, clip, scheduler, mode):
    pipe = tiny_pipeline(scheduler)
    plain, before = generate(pipe), set(vars(pipe.scheduler))
    with CLIPGuidance(clip, "dog", mode=mode).attach(pipe):
        assert not generate(pipe).equal(plain)
    assert set(vars(pipe.scheduler)) == before
    assert not pipe.unet._forward_pre_hooks
    assert all(p.requires_grad for part in (pipe.unet, pipe.vae, clip) for p in part.parameters())
    assert all(p.grad is None for part in (pipe.unet, pipe.vae, clip) for p in part.parameters())
    assert generate(pipe).equal(plain)


@pytest.mark.parametrize("error", [pytest.param(RuntimeError, marks=pytest.mark.slow), KeyboardInterrupt])
@pytest.mark.parametrize("place", ["denoiser", "reward", "callback"])
@modes
def test_after_an_exception_the_pipeline_is_as_before(tiny_pipeline, mode, place, error):
    pipe = tiny_pipeline()
    plain = generate(pipe)

    def fail(*args, **kwargs):
        raise error("stop")

    hook = pipe.unet.mid_block.register_forward_hook(fail) if place == "denoiser" else None
    callback = {"callback_on_step_end": fail} if place == "callback" else {}
    with (
        pytest.raises(error, match="stop"),
        Guidance(fail if place == "reward" else brightness, mode=mode).attach(pipe),
    ):
        generate(pipe, **callback)
    if hook:
        hook.remove()
    assert torch.is_grad_enabled()
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.unet._forward_pre_hooks
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert generate(pipe).equal(plain)


@modes
def test_a_run_that_was_cut_off_does_not_disturb_the_next(tiny_pipeline, mode):
    pipe = tiny_pipeline()
    with Guidance(brightness, mode=mode).attach(pipe):
        expected = generate(pipe)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipe.unet.conv_out, "forward", lambda x: (_ for _ in ()).throw(KeyboardInterrupt))
            generate(pipe)
        assert generate(pipe).equal(expected)
    assert torch.is_grad_enabled()


@schedulers
def test_the_signature_of_step_is_kept(scheduler):
    pipe = minimal_pipeline(scheduler)
    expected = inspect.signature(pipe.scheduler.step)
    with Guidance(brightness, space="latent").attach(pipe):
        assert inspect.signature(pipe.scheduler.step) == expected
        assert pipe.scheduler.step.__name__ == "step"


def test_another_wrapper_of_step_is_kept():
    pipe = minimal_pipeline()
    recorder = Recorder(pipe.scheduler)
    wrapper = pipe.scheduler.step
    with Guidance(brightness, space="latent").attach(pipe):
        loop(pipe)
    assert pipe.scheduler.step is wrapper
    assert len(recorder.calls) == 4


@schedulers
def test_step_takes_positional_and_keyword_arguments(scheduler):
    results = []
    for keywords in (True, False):
        pipe = minimal_pipeline(scheduler)
        pipe.scheduler.set_timesteps(3)
        x, t = torch.ones(1, 2, 3), pipe.scheduler.timesteps[0]
        m = pipe.unet(pipe.scheduler.scale_model_input(x, t), t)
        with Guidance(brightness, space="latent").attach(pipe):
            step = pipe.scheduler.step
            results.append(step(model_output=m, timestep=t, sample=x, return_dict=False)[0] if keywords else
                           step(m, t, x).prev_sample)  # fmt: skip
    assert results[0].equal(results[1])


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_model_output_is_kept(dtype, mode):
    pipe, reward = minimal_pipeline(), Recording()
    recorder = Recorder(pipe.scheduler)
    with Guidance(reward, mode=mode, space="latent").attach(pipe):
        loop(pipe, dtype=dtype)
    assert {output.dtype for output, _, _ in recorder.calls} == {dtype}
    assert {x.dtype for x in reward.inputs} == {torch.promote_types(dtype, torch.float32)}


# ---------------------------------------------------------------- repeated and nested


@schedulers
@modes
def test_repeated_runs_and_attachments_agree(tiny_pipeline, clip, scheduler, mode):
    pipe = tiny_pipeline(scheduler)
    guidance = CLIPGuidance(clip, "dog", mode=mode, cutouts=3, every=2)
    with guidance.attach(pipe):
        first, second = generate(pipe), generate(pipe)
    with guidance.attach(pipe):
        third = generate(pipe)
    assert first.equal(second)
    assert first.equal(third)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["x0", "exact"])
@pytest.mark.parametrize("outer", ["x0", "exact"])
def test_nested_guidances_do_not_depend_on_their_order(tiny_pipeline, clip, outer, inner):
    pipe = tiny_pipeline("euler")
    one, two = CLIPGuidance(clip, "dog", mode=outer), Guidance(brightness, scale=0.1, mode=inner)
    with one.attach(pipe), two.attach(pipe):
        expected = generate(pipe)
    with two.attach(pipe), one.attach(pipe):
        torch.testing.assert_close(generate(pipe), expected)


@schedulers
@modes
def test_a_guidance_attached_twice_counts_twice(tiny_pipeline, clip, scheduler, mode):
    pipe = tiny_pipeline(scheduler)
    variance = 1e4 if mode == "exact" else None  # else random weights meet the bound on each of two shifts
    with CLIPGuidance(clip, "dog", scale=2.0, mode=mode, data_variance=variance).attach(pipe):
        expected = generate(pipe)
    guidance = CLIPGuidance(clip, "dog", scale=1.0, mode=mode, data_variance=variance)
    with guidance.attach(pipe), guidance.attach(pipe):
        torch.testing.assert_close(generate(pipe), expected)


def test_blocks_may_end_in_any_order(tiny_pipeline):
    pipe = tiny_pipeline()
    plain = generate(pipe)
    first, second = Guidance(brightness, mode="exact").attach(pipe), Guidance(brightness).attach(pipe)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with_second = generate(pipe)
    second.__exit__(None, None, None)
    assert generate(pipe).equal(plain)
    with Guidance(brightness).attach(pipe):
        assert generate(pipe).equal(with_second)


# ---------------------------------------------------------------- strength within a batch and over the steps


@schedulers
@modes
def test_an_image_is_steered_in_a_batch_as_it_is_alone(tiny_pipeline, clip, scheduler, mode):
    pipe, prompts = tiny_pipeline(scheduler), ["dog", "tree"]
    with CLIPGuidance(clip, prompts, mode=mode, cutouts=2).attach(pipe):
        batch = generate(pipe, ["cat", "sun"], seeds=(0, 1))
    for i in range(2):
        with CLIPGuidance(clip, prompts[i], mode=mode, cutouts=2).attach(pipe):
            alone = generate(pipe, ["cat", "sun"][i], seeds=(i,))
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@modes
def test_prompts_follow_num_images_per_prompt(tiny_pipeline, clip, mode):
    pipe, prompts = tiny_pipeline(), ["dog", "tree"]
    with CLIPGuidance(clip, prompts, mode=mode).attach(pipe):
        images = generate(pipe, ["cat", "sun"], seeds=(0, 1, 2, 3), num_images_per_prompt=2)
    with CLIPGuidance(clip, ["dog", "dog", "tree", "tree"], mode=mode).attach(pipe):
        expected = generate(pipe, ["cat", "cat", "sun", "sun"], seeds=(0, 1, 2, 3))
    torch.testing.assert_close(images, expected)


WINDOWS = [
    ({}, range(10)),
    ({"start": 0.3}, range(3, 10)),
    ({"stop": 0.7}, range(7)),
    ({"start": 0.25, "stop": 0.55}, [3, 4, 5]),
    ({"every": 3}, [0, 3, 6, 9]),
    ({"every": 4, "start": 0.3}, [3, 4, 8]),
]


@pytest.mark.parametrize(("options", "expected"), WINDOWS)
@modes
@schedulers
def test_start_stop_and_every_choose_the_steps(scheduler, mode, options, expected):
    pipe, reward = minimal_pipeline(scheduler), Recording()
    guidance = Guidance(reward, space="latent", mode=mode, **options)
    with guidance.attach(pipe):
        loop(pipe, steps=10)
    assert guidance.report.steps == list(expected)
    assert len(reward.inputs) == len(guidance.report.rewards) == len(expected)


@modes
@schedulers
def test_outside_the_window_the_model_output_is_untouched(scheduler, mode):
    outputs = {}
    for start in (0.5, None):
        pipe = minimal_pipeline(scheduler)
        recorder = Recorder(pipe.scheduler)
        if start is None:
            loop(pipe)
        else:
            with Guidance(brightness, space="latent", mode=mode, start=start).attach(pipe):
                loop(pipe)
        outputs[start] = [output for output, _, _ in recorder.calls]
    assert [a.equal(b) for a, b in zip(outputs[0.5], outputs[None], strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_the_report_holds_the_latest_run():
    pipe, guidance = minimal_pipeline(), Guidance(brightness, space="latent")
    with guidance.attach(pipe):
        loop(pipe, steps=7)
        loop(pipe, steps=3)
    assert guidance.report.steps == [0, 1, 2]
    assert [rewards.shape for rewards in guidance.report.rewards] == [(2,)] * 3
    assert guidance.report.dropped == 0
