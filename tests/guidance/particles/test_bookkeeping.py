"""Rows that were exchanged go on as their parents would: over every scheduler, and over pipelines.

Whose place a row takes is forced here, and a row that has taken another's place draws the noise of its parent too. So a
run whose rows are exchanged on the way must end where the parents' rows end that were never touched.
"""

import inspect

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
from helpers.gaussian import initial, make_pipe, sample
from helpers.minimal_pipeline import Denoiser, minimal_pipeline
from helpers.pipeline_zoo import PIPELINES, built, run, unguided
from helpers.scheduler_matrix import FEW, SETTINGS, matrix

import clip_guidance as cg
from clip_guidance.guidance.engine.batch import BatchLayout
from clip_guidance.guidance.particles import population
from clip_guidance.guidance.particles import run as particle_run

PARENTS = [2, 2, 0, 3]
STEPS = 8
#: One row each of what has a history of its own; predictions and spacings of sigmas have none.
_KINDS = ("", "plms", "order-3", "sde++", "sde", "dpm", "eps", "stochastic")
ROWS = list({(s.scheduler, s.note): s for s in reversed(SETTINGS) if s.note in _KINDS}.values())[::-1]
#: Keep something of earlier steps that decides the next one.
HISTORY = {
    *("PNDM", "IPNDM", "LMSDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"),
    *("SASolver", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:copies of a particle stay equal:UserWarning"),  # they draw the same noise here
    *(pytest.mark.filterwarnings(f"ignore:{what}") for what in (".*is deprecated:FutureWarning", "torch.meshgrid")),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi's wants float32
]


def indifferent(x):
    return 0 * x.flatten(1).sum(1)


@pytest.fixture
def forced(monkeypatch):
    """Parents of the places of a group -> they are those at every resampling, also of the noise from there on."""
    rows = [0, 1, 2, 3]

    def inherited(draw):
        def drawn(*args, **kwargs):
            noise = draw(*args, **kwargs)
            return noise[rows] if len(noise) == len(rows) else noise

        return drawn

    def force(parents):
        def resampled(weights, generator):
            rows[:] = [rows[parent] for parent in parents]
            return torch.tensor(parents).repeat(len(weights), 1)

        rows[:] = range(len(parents))
        monkeypatch.setattr(population, "resampled", resampled)

    own = BrownianTreeNoiseSampler.__call__

    def increment(*args):
        found, rows[:] = list(rows), range(len(rows))  # the tree draws its own noise by torch.randn
        noise = own(*args)
        rows[:] = found
        return noise[rows]

    monkeypatch.setattr(BrownianTreeNoiseSampler, "__call__", increment)
    for name in ("randn", "randn_like"):
        monkeypatch.setattr(torch, name, inherited(getattr(torch, name)))
    return force


def particles(k=4, **options):
    return cg.Particles(indifferent, k, **{"space": "latent", "resample_at": (0.3, 0.6), **options})


@matrix(ROWS, default=FEW)
def test_rows_go_on_as_their_parents_over_every_scheduler(setting, forced, monkeypatch):
    pipe = make_pipe(setting)
    noise = initial(pipe.scheduler, count=4)
    own = sample(pipe, STEPS, noise=noise)
    grandparents = [PARENTS[parent] for parent in PARENTS]  # resampled twice
    assert not own[grandparents].allclose(own, rtol=1e-3)
    forced(PARENTS)
    with particles().attach(pipe) as attached:
        found = sample(pipe, STEPS, noise=noise)
    assert [each.parents.tolist() for each in attached.result.resamplings] == [[PARENTS]] * 2
    assert attached.result.origins.tolist() == [grandparents]
    torch.testing.assert_close(found, own[grandparents], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(particle_run, "take_rows", lambda scheduler, rows: None)
    forced(PARENTS)
    with particles().attach(pipe):
        without = sample(pipe, STEPS, noise=noise)
    kept = without.allclose(own[grandparents], rtol=1e-5, atol=1e-5)
    assert kept != (setting.scheduler.removesuffix("Scheduler") in HISTORY)  # the test sees what is not carried


@pytest.mark.parametrize("mode", ["x0", pytest.param("exact", marks=pytest.mark.slow)])
@pytest.mark.parametrize("inside", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_shift_that_guidance_holds_follows_its_row(mode, inside, forced):
    """``every=3`` uses the latest gradient at the steps between, of which resampling takes place in the middle."""
    forced(PARENTS)
    noise = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def guidance():
        return cg.Guidance(lambda x: -((x - 0.5) ** 2).flatten(1).sum(1), mode=mode, every=3, space="latent")

    def loop(pipe):
        pipe.scheduler.set_timesteps(6)
        x = noise
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t), t, x).prev_sample
        return x

    pipe = minimal_pipeline()
    with guidance().attach(pipe):
        own = loop(pipe)
    alone = particles(resample_at=0.3)
    blocks = (guidance(), alone) if inside else (alone, guidance())
    with blocks[0].attach(pipe), blocks[1].attach(pipe):
        found = loop(pipe)
    torch.testing.assert_close(found, own[PARENTS])
    assert isinstance(pipe.unet, Denoiser) and "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("layout", [BatchLayout(), BatchLayout(copies=2), BatchLayout(frames=3)])
def test_rows_of_doubled_batches_and_of_frames(layout):
    shape = (4, 2, 3, 5, 5) if layout.frames else (4, 2, 5, 5)
    samples, parents = torch.rand(shape), torch.tensor(PARENTS)
    handed = layout.handed(samples)
    assert layout.samples(handed).equal(samples)
    assert handed[layout.rows(parents)].equal(layout.handed(samples[parents]))


def count_argument(key):
    """What a pipeline calls the number of images of a prompt."""
    accepted = inspect.signature(built(key)[0].__call__).parameters
    return next((name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in accepted), None)


def plain_run(key):
    """What a pipeline makes of two images of a prompt, or of one where it cannot; how it is called, and how many."""
    name = count_argument(key)
    if name:
        try:
            return run(key, **{name: 2}), {name: 2}, 2
        except Exception:  # unguided: of diffusers itself, or the inputs made for it here are those of one image
            pass
    return run(key), {}, 1


@pytest.mark.slow
@pytest.mark.parametrize("key", PIPELINES)
def test_particles_travel_through_every_pipeline(key):
    """Of equal rewards the images are the pipeline's own, to the bit."""
    pipe, _ = built(key)
    plain, call, k = plain_run(key)
    try:
        with cg.Particles(indifferent, k, space="latent", resample_at=0.4).attach(pipe) as attached:
            assert run(key, **call).equal(plain)
    except ValueError as refusal:
        if key == "CycleDiffusionPipeline":  # diffusers broadcasts the model output of one image to two samples
            assert "expected a model output of the sample's shape" in str(refusal)
            return
        assert "needs k images of each prompt" in str(refusal) or "needs a batch of k samples" in str(refusal)
        assert plain.equal(unguided(key))  # it does not read the number, as was said
        with cg.Particles(indifferent, k := 1, space="latent", resample_at=0.4).attach(pipe) as attached:
            assert run(key).equal(plain)
    assert attached.result.origins[0].tolist() == list(range(k))
