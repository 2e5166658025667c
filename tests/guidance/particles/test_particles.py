"""Particles in a stock pipeline: what comes out, what is left as it was, and what is refused or told."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.factories import make_clip
from helpers.minimal_pipeline import loop, minimal_pipeline

import clip_guidance as cg
from clip_guidance.guidance.particles import population
from clip_guidance.guidance.particles import run as particle_run
from clip_guidance.rewards import RewardError

CALL = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "pt", "eta": 1.0}
slow = pytest.mark.slow
each_potential = pytest.mark.parametrize(
    "potential", ["difference", *(pytest.param(each, marks=slow) for each in ("max", "sum", "best"))]
)


@pytest.fixture
def pipe(tiny_pipeline):
    return tiny_pipeline()


def contrast(images):
    return images.std((1, 2, 3))


def generators(count, seed=5):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def drawn(pipe, prompt="cat", k=4, **call):
    groups = len(prompt) if isinstance(prompt, list) else 1
    call = {"generator": generators(groups * k), **CALL, **call}
    return pipe(prompt, num_images_per_prompt=k, **call).images


def travelled(pipe, reward=contrast, k=4, prompt="cat", options=None, **call):
    """The images and the result."""
    with cg.Particles(reward, k, **{"scale": 200.0, **(options or {})}).attach(pipe) as particles:
        images = drawn(pipe, prompt, k, **call)
    return images, particles.result


# ---------------------------------------------------------------- what comes out


def test_without_resampling_the_pipelines_own_images_come_out_best_first(pipe):
    plain = drawn(pipe, ["cat", "dog"], k=3)
    images, found = travelled(pipe, k=3, prompt=["cat", "dog"], options={"resample_at": ()})
    order = contrast(plain).view(2, 3).argsort(dim=1, descending=True)
    assert found.origins.equal(order) and found.seeds == [[5 + i for i in order[0]], [8 + i for i in order[1]]]
    assert images.equal(plain.unflatten(0, (2, 3))[torch.arange(2)[:, None], order].flatten(0, 1))
    torch.testing.assert_close(found.rewards.flatten().float(), contrast(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.weights, (200 * found.rewards).softmax(1))
    torch.testing.assert_close(found.log_evidence, (200 * found.rewards).exp().mean(1).log())
    assert found.evaluations == 6 and not found.resamplings and not found.failed


@each_potential
def test_who_keeps_its_place_goes_on_as_it_would_and_copies_differ(pipe, potential):
    """To the bit: each place has a generator of its own, so that nothing that happens to others touches a particle."""
    plain = drawn(pipe, ["cat", "dog"], k=4)
    tilt = {} if potential == "best" else {"scale": 200.0}
    images, found = travelled(
        pipe, prompt=["cat", "dog"], options={"resample_at": (0.2, 0.6), "potential": potential, "scale": None} | tilt
    )
    parents = torch.stack([each.parents for each in found.resamplings])
    assert [each.step for each in found.resamplings] == [0, 2]
    assert (parents != torch.arange(4)).any()  # some were copied
    stayed = (parents == torch.arange(4)).all(0)
    assert stayed.any() or potential == "best"
    for group, place in stayed.nonzero().tolist():
        own = plain[4 * group + place]
        assert any(own.equal(image) for image in images[4 * group : 4 * group + 4])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 8
    assert (found.rewards.diff(dim=1) <= 0).all()
    torch.testing.assert_close(contrast(images).view(2, 4).double(), found.rewards, rtol=0, atol=1e-6)


@slow
def test_runs_are_equal_to_the_bit_and_chunks_change_them_by_rounding(pipe):
    first, found = travelled(pipe, k=4)
    again, same = travelled(pipe, k=4)
    assert again.equal(first) and same.rewards.equal(found.rewards)
    assert [each.parents.tolist() for each in same.resamplings] == [each.parents.tolist() for each in found.resamplings]
    for batch_size in (1, 3):
        chunked, other = travelled(pipe, k=4, options={"batch_size": batch_size})
        torch.testing.assert_close(other.rewards, found.rewards, rtol=0, atol=1e-6)
        torch.testing.assert_close(chunked, first, rtol=0, atol=1e-6)
    _, seeded = travelled(pipe, k=4, options={"seed": 7})
    assert seeded.evaluations == 20 == found.evaluations


@slow
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("mode", ["x0", "exact"])
def test_guidance_steers_each_particle_whoever_is_attached_first(pipe, inside, mode):
    guidance, flat = cg.Guidance(contrast, scale=50.0, mode=mode), cg.Particles(lambda x: 0 * x.mean((1, 2, 3)), 3)
    with guidance.attach(pipe):
        guided = drawn(pipe, k=3)
    assert not guided.equal(drawn(pipe, k=3))
    blocks = (guidance, flat) if inside else (flat, guidance)
    with blocks[0].attach(pipe), blocks[1].attach(pipe):
        assert drawn(pipe, k=3).equal(guided)
    found = cg.Particles(contrast, 3, scale=100.0)
    blocks = (guidance, found) if inside else (found, guidance)
    with blocks[0].attach(pipe), blocks[1].attach(pipe):
        images = drawn(pipe, k=3)
    torch.testing.assert_close(contrast(images)[None].double(), found.result.rewards, rtol=0, atol=1e-6)


@slow
def test_every_form_of_reward_rates(pipe):
    def of_pil(images):
        return [float(np.asarray(image).std()) / 255 for image in images]

    class Scorer:
        def score(self, images, prompts):
            assert prompts == ["cat"] * (len(images) // 2) + ["dog"] * (len(images) // 2)
            return contrast(images)

    _, expected = travelled(pipe, k=2, prompt=["cat", "dog"], options={"resample_at": ()})
    for reward, tolerance in ((of_pil, 0.01), (Scorer(), 1e-6)):
        _, found = travelled(pipe, reward, k=2, prompt=["cat", "dog"], options={"resample_at": (), "batch_size": 1})
        torch.testing.assert_close(found.rewards, expected.rewards, rtol=0, atol=tolerance)
    targets = cg.guidance.CLIPReward(make_clip(), ["a cat", "a dog"])  # one for each prompt, in each chunk
    images, found = travelled(pipe, targets, k=4, prompt=["cat", "dog"], options={"batch_size": 3, "scale": 1.0})
    torch.testing.assert_close(targets(images).view(2, 4).double(), found.rewards, rtol=0, atol=1e-4)


@slow
@pytest.mark.parametrize("scheduler", ["euler", "dpm"])
def test_a_warm_start_gives_the_best_of_the_beginning_with_samplers_of_no_noise(tiny_pipeline, scheduler):
    """k equal images: those of the particle that was best after a part of the run."""
    pipe = tiny_pipeline(scheduler)
    plain = drawn(pipe)
    options = {"resample_at": 0.4, "potential": "best", "scale": None}
    images, found = travelled(pipe, options=options)
    best = found.resamplings[0].rewards.argmax().item()
    assert found.origins.tolist() == [[best] * 4] and found.seeds == [[5 + best] * 4]
    torch.testing.assert_close(images, plain[best].expand_as(images), rtol=0, atol=1e-5)
    assert found.weights is None and found.resamplings[0].effective_sizes.tolist() == [1]


@slow
def test_a_denoising_end_ranks_by_what_is_predicted(pipe):
    """A pipeline that hands a noisy sample on is read at its last step's x̂₀, as its result is no image."""
    seen = []

    def reward(x):
        seen.append(x)
        return x.flatten(1).sum(1)

    pipe = minimal_pipeline()
    with cg.Particles(reward, 2, space="latent", resample_at=()).attach(pipe) as particles:
        x = loop(pipe, steps=4)
    assert x.equal(seen[-1]) or x.flip(0).equal(seen[-1])
    assert particles.result.rewards[0].tolist() == x.flatten(1).sum(1).double().tolist()


# ---------------------------------------------------------------- what is left as it was


def test_all_is_restored_also_after_an_exception_and_twice_is_refused(pipe):
    scheduler, before = pipe.scheduler, dict(vars(pipe.scheduler))
    particles = cg.Particles(contrast, 2, resample_at=0.5)

    def fails(images):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), cg.Particles(fails, 2).attach(pipe):
        drawn(pipe, k=2)
    twice = pytest.raises(ValueError, match="attached to this pipeline already")
    with twice, particles.attach(pipe), particles.attach(pipe):
        pass
    with cg.Guidance(contrast).attach(pipe), particles.attach(pipe), cg.Guidance(contrast).attach(pipe):
        assert "step" in vars(scheduler)
    assert vars(scheduler).keys() == before.keys() and particles.result is None


@pytest.fixture(autouse=True)
def nothing_is_told_of_blocks_that_ran_nothing():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*so that no particle travelled", UserWarning)
        yield


# ---------------------------------------------------------------- what is told


def test_a_sampler_without_noise_is_told_once_with_the_cure(pipe):
    telling = pytest.warns(UserWarning, match="copies of a particle stay equal: the DDIMScheduler.*eta=1.*'best'")
    with telling as told, cg.Particles(contrast, 4, scale=1e4, resample_at=(0.2, 0.4)).attach(pipe):
        drawn(pipe, eta=0.0)
        drawn(pipe, eta=0.0)
    assert len(told) == 1


def test_rewards_that_are_not_finite_count_as_the_worst_and_are_named():
    pipe = minimal_pipeline()

    def reward(x):
        return torch.where(x.flatten(1).mean(1) == x.flatten(1).mean(1).max(), torch.nan, x.flatten(1).mean(1))

    particles = cg.Particles(reward, 4, space="latent", resample_at=0.5, potential="best")
    telling = pytest.warns(UserWarning, match="5 of 8 rewards were not finite.*after step 1, nan; `result.failed`")
    with telling, particles.attach(pipe):
        loop(pipe, shape=(4, 3, 4))
    failed, found = particles.result.failed, particles.result
    assert [each.step for each in failed] == [1, 3, 3, 3, 3]  # of the four copies of one each is the largest
    assert failed[0].place not in found.resamplings[0].parents[0].tolist()


@slow
def test_an_image_that_is_not_finite_costs_itself_alone(pipe):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[1] = torch.nan
    with pytest.warns(UserWarning, match="not finite"):
        images, found = travelled(pipe, latents=latents, options={"resample_at": 0.4})
    assert images.isfinite().all() and 1 not in found.origins  # its place was taken
    assert {each.place for each in found.failed} == {1}


def test_a_run_that_resampled_nothing_or_did_not_end_is_told():
    pipe, particles = minimal_pipeline(), cg.Particles(lambda x: x.flatten(1).sum(1), 2, space="latent")
    telling = pytest.warns(UserWarning, match=r"after none of 1 steps: resample_at=\(0.2, 0.4, 0.6, 0.8\).*more steps")
    with telling, particles.attach(pipe):
        loop(pipe, steps=1)
    telling = pytest.warns(
        UserWarning, match="ended after 1 of 4 steps of the DDIMScheduler: its images are in no order"
    )
    with telling, particles.attach(pipe):
        pipe.scheduler.set_timesteps(4)
        x = torch.ones(2, 3, 4)
        pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x)
    with pytest.warns(UserWarning, match="took no step of its DDIMScheduler"), particles.attach(pipe):
        pass


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1 particle per prompt, got 0"),
        ({"k": 2.5}, "k must be at least 1 particle per prompt, got 2.5"),
        ({"resample_at": 1.0}, r"resample_at must be fractions of the run, in \(0, 1\), got 1.0"),
        ({"resample_at": (0.0, 0.5)}, r"resample_at must be fractions of the run, in \(0, 1\), got \(0.0, 0.5\)"),
        ({"resample_at": "half"}, "resample_at must be a number or several, got str"),
        ({"potential": "add"}, "potential must be one of difference, max, sum, best, got 'add'"),
        ({"potential": "best", "scale": 2.0}, "'best' takes the best whatever the scale: leave out scale=2.0"),
        ({"scale": -1.0}, "scale must be above 0 and finite, got -1.0: -reward lowers a reward"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"space": "pixel"}, "space must be one of image, latent, got 'pixel'"),
        ({"space": "latent", "to_image": contrast}, "space='latent' decodes nothing: leave out decoding and to_image"),
        ({"to_image": contrast, "decoding": cg.Decoding()}, "to_image makes the images in place of a decoding"),
        ({"reward": 3}, "expected a reward"),
        ({"reward": SimpleNamespace(score=contrast), "space": "latent"}, "needs a function of latents"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        cg.Particles(**{"reward": contrast, "k": 2, **options})
    assert len(str(told.value)) <= 300


def test_batches_without_k_images_of_each_prompt_are_refused(pipe):
    refusal = pytest.raises(
        ValueError, match=r"Particles\(k=3\) needs k images of each prompt: pass num_images_per_prompt"
    )
    with refusal, cg.Particles(contrast, 3).attach(pipe):
        drawn(pipe, ["cat", "dog", "bus"], k=1)  # three images, but of three prompts
    with cg.Particles(contrast, 3).attach(pipe):
        assert len(drawn(pipe, ["cat"] * 3, k=1, generator=generators(3))) == 3  # three of one, written out
    minimal = minimal_pipeline()
    refusal = pytest.raises(ValueError, match=r"needs a batch of k samples for each prompt, got a batch of 2")
    with refusal, cg.Particles(contrast, 3, space="latent").attach(minimal):
        loop(minimal)


@slow
def test_a_reward_that_needs_prompts_or_returns_no_numbers_is_refused(pipe):
    class Scorer:
        def score(self, images, prompts):
            return contrast(images)

    embeds, negative = pipe.encode_prompt("cat", "cpu", 1, True)
    with pytest.raises(ValueError, match="rates images against prompts"), cg.Particles(Scorer(), 2).attach(pipe):
        drawn(pipe, None, k=2, prompt_embeds=embeds, negative_prompt_embeds=negative)
    with pytest.raises(RewardError, match="one number per image"), cg.Particles(lambda x: x.mean(), 2).attach(pipe):
        drawn(pipe, k=2)


@slow
def test_the_noise_of_resampling_is_its_own(pipe, monkeypatch):
    """The pipeline's noise and torch's own are untouched by what resampling draws."""
    counts = []
    own = population.resampled
    monkeypatch.setattr(population, "resampled", lambda *args: counts.append(1) or own(*args))
    torch.manual_seed(3)
    plain = drawn(pipe, k=2, generator=None)
    after = torch.rand(1)
    torch.manual_seed(3)
    images, _ = travelled(pipe, lambda x: 0 * x.mean((1, 2, 3)), k=2, generator=None)
    assert images.equal(plain) and torch.rand(1).equal(after) and len(counts) == 4


def test_the_seed_of_a_generator_may_be_any_that_torch_takes():
    """torch tells 2⁶⁴ − 1 of a generator that was seeded with −1, which no int64 holds."""
    seeds = [-1, 0, 2**63 - 1, -(2**62)]
    call = SimpleNamespace(variables={"generator": [torch.Generator().manual_seed(seed) for seed in seeds]})
    assert particle_run._seeds(call, 4, 2).tolist() == [seeds[:2], seeds[2:]]
