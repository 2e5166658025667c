"""The guidance node patches a MODEL so that the images are those of ``attach`` in a pipeline of diffusers."""

import copy
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from helpers.comfyui import CONST, EPS, SCALE, SD15, V_PREDICTION, Patcher, load_nodes, make_vae, part, sample
from helpers.factories import TinyCLIP

import clip_guidance as cg

KINDS = {"epsilon": EPS(), "v_prediction": V_PREDICTION(), "flow": CONST()}
VE_SIGMAS, FLOW_SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.6, 0.2, 0.0]), torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0])
DEFAULTS = {
    "prompt": "a red apple", "strength": 40.0, "start": 0.0, "stop": 1.0, "damping": 0.0, "cutouts": 1, "seed": 0,
    "decoding": "full",
}  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(2)
    return TinyCLIP()


def steer(model, clip, vae=None, **options):
    node = load_nodes().NODE_CLASS_MAPPINGS["ClipGuidanceSteer"]()
    with torch.inference_mode():
        (patched,) = node.patch(model, clip, vae or make_vae(), **{**DEFAULTS, **options})
    return patched


def noise(batch=2):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def sigmas_of(kind):
    return FLOW_SIGMAS if kind == "flow" else VE_SIGMAS


def by_attach(kind, model, *guidances):
    """The same networks and noise in a loop of diffusers' scheduler."""
    network, decoder = (copy.deepcopy(each) for each in (model.model.network, make_vae().first_stage_model))
    sigmas, sampling = sigmas_of(kind), KINDS[kind]
    if kind == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
    else:
        scheduler = EulerDiscreteScheduler(prediction_type=kind)
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas = sigmas
    pipe = SimpleNamespace(scheduler=scheduler, unet=network)
    for guidance in guidances:
        guidance.to_image = lambda x0: (decoder.decode(x0 / SCALE) + 1) / 2
    with ExitStack() as stack, torch.no_grad():
        for guidance in guidances:
            stack.enter_context(guidance.attach(pipe))
        x = sampling.noise_scaling(sigmas[0], noise(), 0)
        for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
            x = scheduler.step(network(sampling.scaled(sigma, x), sigma), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_that_of_attach(kind, clip):
    model = Patcher(KINDS[kind])
    options = {"start": 0.2, "damping": 0.1}
    found = sample(steer(model, clip, **options), sigmas_of(kind), noise())
    expected = by_attach(kind, model, cg.CLIPGuidance(clip, "a red apple", 40.0, **options))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - sample(model, sigmas_of(kind), noise())).abs().max() > 0.1


@pytest.mark.slow
def test_two_nodes_add_up_as_two_that_are_attached(clip):
    model = Patcher(KINDS["epsilon"])
    first = steer(model, clip, stop=0.6)
    both = steer(first, clip, prompt="a green pear", strength=-20.0, cutouts=3, seed=4)
    expected = by_attach(
        "epsilon",
        model,
        cg.CLIPGuidance(clip, "a red apple", 40.0, stop=0.6),
        cg.CLIPGuidance(clip, "a green pear", -20.0, cutouts=3, seed=4),
    )
    torch.testing.assert_close(sample(both, VE_SIGMAS, noise()), expected, rtol=1e-5, atol=1e-5)
    alone = by_attach("epsilon", model, cg.CLIPGuidance(clip, "a red apple", 40.0, stop=0.6))
    torch.testing.assert_close(sample(first, VE_SIGMAS, noise()), alone, rtol=1e-5, atol=1e-5)
    assert not model.model_options and not model.wrappers


def test_no_strength_changes_nothing(clip):
    model = Patcher(KINDS["flow"])
    assert sample(steer(model, clip, strength=0.0), FLOW_SIGMAS, noise()).equal(sample(model, FLOW_SIGMAS, noise()))


@pytest.mark.slow
def test_an_image_is_a_target_with_the_text_or_alone(clip):
    model, image = Patcher(KINDS["v_prediction"]), torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    first, second = image.movedim(-1, 1)
    for prompt, target in (("", [(first, 0.5), (second, 0.5)]), ("a", [("a", 1.0), (first, 0.5), (second, 0.5)])):
        found = sample(steer(model, clip, prompt=prompt, image=image), VE_SIGMAS, noise())
        expected = by_attach("v_prediction", model, cg.CLIPGuidance(clip, target, 40.0))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_neighbours(clip):
    patched = steer(Patcher(KINDS["epsilon"]), clip)
    alone = torch.cat([sample(patched, VE_SIGMAS, each[None]) for each in noise(3)])
    torch.testing.assert_close(sample(patched, VE_SIGMAS, noise(3)), alone, rtol=1e-5, atol=1e-5)


def test_a_window_without_a_step_is_told(clip):
    patched = steer(Patcher(KINDS["epsilon"]), clip, start=0.9)
    with pytest.warns(UserWarning, match="guidance steered no step of a run: start=0.9, stop=1.0"):
        sample(patched, VE_SIGMAS, noise(1))


class Unknown:
    pass


class IMG_TO_IMG(EPS):
    pass


class Wan(SD15):
    latent_dimensions = 3


@pytest.mark.parametrize(
    ("sampling", "latent_format", "vae", "options", "message"),
    [
        (Unknown(), SD15, {}, {}, "this model's sampling is Unknown"),
        (IMG_TO_IMG(), SD15, {}, {}, "this model's sampling is IMG_TO_IMG, EPS"),
        (EPS(), SD15, {"channels": 16}, {}, r"the VAE decodes latents of 16 channels, .* \(SD15\) have 4"),
        (EPS(), SD15, {"vae_scale": 0.13}, {}, r"a model whose latents are scaled by 0.13000; .* by 0.70000"),
        (EPS(), Wan, {}, {}, r"those of the model \(Wan\) have 3, those of the VAE 2"),
        (EPS(), SD15, {}, {"prompt": " "}, "nothing to steer towards: give a prompt, or an image, or both"),
    ],
)
def test_what_cannot_work_is_refused_by_the_node(sampling, latent_format, vae, options, message, clip):
    with pytest.raises(ValueError, match=message) as error:
        steer(Patcher(sampling, latent_format()), clip, make_vae(**vae), **options)
    assert len(str(error.value)) <= 300


def test_the_taesd_of_the_family_is_taken(clip):
    steer(Patcher(EPS()), clip, make_vae(vae_scale=SCALE))


def test_the_window_is_validated_before_the_graph_runs():
    validate = load_nodes().NODE_CLASS_MAPPINGS["ClipGuidanceSteer"].VALIDATE_INPUTS
    assert validate(0.0, 0.5) is True
    assert validate(0.5, 0.2) == "start=0.5 must be below stop=0.2"


@pytest.mark.parametrize(
    ("sampling", "sigma", "expected"),
    [(EPS(), 3.0, (1.0, 3.0)), (V_PREDICTION(), 3.0, (1.0, 3.0)), (CONST(), 0.25, (0.75, 0.25))],
)
def test_the_noise_level_is_the_sampling_objects(sampling, sigma, expected):
    assert part("sampling").noise_level(sampling, torch.tensor(sigma)) == pytest.approx(expected)


def test_a_stage_between_two_sigmas_belongs_to_the_step_before():
    steps = [part("sampling").step_of(sigma, VE_SIGMAS) for sigma in (10.0, 9.0, 8.9999, 6.0, 4.0, 0.2, 0.1)]
    assert steps == [0, 0, 0, 0, 1, 4, 4]
