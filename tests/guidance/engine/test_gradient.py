"""The gradient of a reward at a clean sample: in parts, of videos, and through networks of half precision."""

import copy
import weakref

import pytest
import torch
from helpers.decoding import contrast, gradient, latents, with_vae
from helpers.factories import generate, make_clip
from torch import nn

from clip_guidance._tensors import power_of_two, sized_for_half
from clip_guidance.guidance import CLIPReward, Cutouts, Decoding, Guidance, WeightedRewards
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import gradient_at_images, reward_gradient, vjp
from clip_guidance.guidance.memory.measure import Meter
from clip_guidance.guidance.weights.freeze import freeze_parameters


def random_images(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def similarity(a, b):
    """Cosines (B,) of gradients."""
    return nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())


# ---------------------------------------------------------------- in parts


class Parts:
    """x·w₁ + x·w₂ + ..., one after the other; notes how much is in memory meanwhile."""

    def __init__(self, count):
        self.weights = [random_images(3, 5, 5) - 0.5 + i for i in range(count)]
        self.alive, self.most = weakref.WeakSet(), 0

    def parts(self, images):
        for weight in self.weights:
            activations = (images * weight).square()
            self.alive.add(activations)
            self.most = max(self.most, len(self.alive))
            part = activations.flatten(1).sum(1)
            del activations
            yield part

    def __call__(self, images):
        return sum(self.parts(images))


def test_the_parts_of_a_reward_add_up():
    images = random_images(2, 3, 5, 5)
    found, reward = gradient_at_images(Parts(4), images), Parts(4)
    leaf = images.clone().requires_grad_()
    rewards = reward(leaf)
    torch.testing.assert_close(found.rewards, rewards.detach())
    torch.testing.assert_close(found.gradient, torch.autograd.grad(rewards.sum(), leaf)[0])


def test_one_part_is_in_memory_at_a_time():
    reward = Parts(5)
    gradient_at_images(reward, random_images(2, 3, 5, 5))
    assert reward.most == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_of_cutouts_take_the_memory_of_one_chunk(weighted):
    def peak(count, chunk):
        reward = CLIPReward(make_clip(), "a red apple", Cutouts(count, smallest=1.0), chunk)
        with Meter() as meter, freeze_parameters([reward]):
            gradient_at_images(WeightedRewards([(1.0, reward)]) if weighted else reward, random_images(1, 3, 32, 32))
        return meter.peak

    assert peak(8, 1) == pytest.approx(peak(1, None), rel=0.15)
    assert peak(8, None) > 4 * peak(8, 1)


def test_the_decoder_runs_once_whatever_the_parts(tiny_pipeline, monkeypatch):
    pipe, calls = tiny_pipeline(), []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **options: calls.append(1) or decode(*args, **options))
    reward = WeightedRewards([(1.0, CLIPReward(make_clip(), "cat", Cutouts(6), chunk=2)), (0.5, contrast)])
    gradient(pipe, Decoding(), latents(dtype=torch.float32), reward)
    assert len(calls) == 1


# ---------------------------------------------------------------- videos


def test_a_videos_reward_is_the_mean_of_its_frames():
    video = random_images(2, 3, 4, 6, 6, dtype=torch.float64)  # four frames
    found = gradient_at_images(contrast, video.clone())
    leaf = video.clone().requires_grad_()
    expected = torch.stack([contrast(leaf[:, :, i]) for i in range(4)]).mean(0)
    torch.testing.assert_close(found.rewards, expected.detach())
    torch.testing.assert_close(found.gradient, torch.autograd.grad(expected.sum(), leaf)[0])


def test_each_prompt_serves_all_frames_of_its_video():
    clip, video = make_clip(), random_images(2, 3, 3, 32, 32)
    together = gradient_at_images(CLIPReward(clip, ["a red apple", "a cat"]), video.clone())
    for i, prompt in enumerate(["a red apple", "a cat"]):
        alone = gradient_at_images(CLIPReward(clip, prompt), video[i : i + 1].clone())
        torch.testing.assert_close(alone.rewards, together.rewards[i : i + 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.gradient, together.gradient[i : i + 1], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- sizes that half precision holds


def test_the_power_of_two_is_each_samples_own():
    x = torch.tensor([[3.0, -5.0], [1e-30, 0.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [0.5, 0.5]])
    factor = power_of_two(x)
    assert factor[2:5].flatten().tolist() == [1, 1, 1]
    largest = (factor * x)[[0, 1, 5]].abs().amax(1)
    assert ((largest >= 0.5) & (largest < 1)).all()
    assert factor.log2().frac().eq(0).all()


class Weights(nn.Module):
    """tanh(x·W) in a precision of its own, (B, n) to (B, n)."""

    def __init__(self, dtype, size=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter((size * torch.randn(6, 6, generator=generator)).to(dtype), requires_grad=False)

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).tanh().to(x.dtype)


SIZES = (1e-8, 1.0, 1e8)


@pytest.mark.parametrize("size", SIZES)
def test_a_vector_jacobian_product_keeps_the_size_of_the_cotangent(size):
    x, cotangent = random_images(3, 6), (random_images(3, 6) - 0.5) * torch.tensor([[size], [1.0], [0.0]])

    def found(network, product):
        leaf = x.clone().requires_grad_()
        return product(network(leaf), [leaf], cotangent)[0]

    expected = found(Weights(torch.float32), torch.autograd.grad)
    half = found(Weights(torch.float16), vjp)
    torch.testing.assert_close(half, expected, rtol=0.02, atol=5e-3 * min(size, 1))
    assert half[2].eq(0).all()
    if size != 1:
        plain = found(Weights(torch.float16), torch.autograd.grad)[0]
        assert plain.eq(0).any() or not plain.isfinite().all()  # what the scaling is for


@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_that_passes_on_through_a_half_network_keeps_its_size(size):
    x = random_images(3, 6).requires_grad_()
    half, single = Weights(torch.float16), Weights(torch.float32)
    weight = size * (random_images(3, 6) - 0.5)
    expected = torch.autograd.grad((weight * single(x)).sum(), x)[0]
    output = sized_for_half(half, x)
    for _ in range(2):  # a graph may be walked twice
        found = torch.autograd.grad((weight * output).sum(), x, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, rtol=0.02, atol=5e-3 * size)
    with torch.no_grad():
        assert sized_for_half(half, x).equal(half(x))


def test_in_single_precision_sizing_changes_no_bit():
    x, network = random_images(3, 6).requires_grad_(), Weights(torch.float32)
    plain, sized = (
        torch.autograd.grad(run(x).square().sum(), x)[0] for run in (network, lambda x: sized_for_half(network, x))
    )
    assert plain.equal(sized)


# ---------------------------------------------------------------- half networks in guidance

halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
rewards = pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])


@halves
@rewards
def test_a_half_decoder_gives_the_gradient_of_the_double_one(tiny_pipeline, dtype, size):
    pipe = tiny_pipeline(dtype=torch.float64)
    half = with_vae(pipe, copy.deepcopy(pipe.vae).to(dtype))
    half.vae.register_to_config(force_upcast=False)
    x0 = latents()
    expected = gradient(pipe, Decoding(), x0, lambda images: size * contrast(images))
    found = gradient(half, Decoding(), x0.float(), lambda images: size * contrast(images))
    assert found.dtype == torch.float32
    assert similarity(found, expected).min() > 0.99
    torch.testing.assert_close(found.norm().double(), expected.norm(), rtol=0.05, atol=0)


@halves
@rewards
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_half_clip_gives_the_gradient_of_the_double_one(dtype, size, chunk):
    clip = make_clip()
    images = random_images(2, 3, 40, 32)

    def found(dtype):
        reward = CLIPReward(copy.deepcopy(clip).to(dtype), "a red apple", Cutouts(5), chunk)
        with freeze_parameters([reward]):
            leaf = images.double() if dtype == torch.float64 else images.clone()
            return gradient_at_images(WeightedRewards([(size, reward)]), leaf)

    half, double = found(dtype), found(torch.float64)
    assert half.gradient.dtype == half.rewards.dtype == torch.float32
    assert similarity(half.gradient, double.gradient).min() > 0.99
    torch.testing.assert_close(half.gradient.norm().double(), double.gradient.norm(), rtol=0.05, atol=0)
    torch.testing.assert_close(half.rewards.double(), double.rewards, rtol=0.02, atol=0.05 * size)


@halves
def test_cosines_and_logits_of_a_half_clip_are_computed_in_single_precision(dtype):
    clip = make_clip().to(dtype)
    with torch.no_grad():
        clip.logit_scale.fill_(4.6)
    images = random_images(3, 3, 32, 32)
    rewards = CLIPReward(clip, "a red apple")(images)
    embeds = clip.image_embeds(clip.image_processor.differentiable(images).to(dtype))
    assert embeds.dtype == rewards.dtype == torch.float32
    scale = clip.logit_scale.detach().double().exp()  # not rounded to half: its error would be 0.4 percent
    expected = scale * (embeds.double() @ clip.encode_text("a red apple").double().T)[:, 0]
    torch.testing.assert_close(rewards.double(), expected, rtol=1e-5, atol=1e-6)


def test_other_rewards_in_float16_are_scaled_by_a_constant():
    class Faint(nn.Module):
        """Its gradient, 1e-9, is zero in float16."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1e-4, dtype=torch.float16), requires_grad=False)

        def forward(self, images):
            return ((images.half() * self.weight).flatten(1).sum(1) * 1e-5).float()

    leaf = random_images(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.grad(Faint()(leaf).sum(), leaf)[0].eq(0).all()
    found = gradient_at_images(Faint(), leaf.detach()).gradient
    torch.testing.assert_close(found, torch.full_like(found, 1e-9), rtol=0.05, atol=0)


@halves
@pytest.mark.parametrize("mode", ["x0", "exact"])
def test_a_half_pipeline_is_steered_as_the_single_one(tiny_pipeline, dtype, mode):
    single = tiny_pipeline()
    half = copy.copy(single)
    for name in ("unet", "vae", "text_encoder"):
        setattr(half, name, copy.deepcopy(getattr(single, name)).to(dtype))
    half.scheduler = copy.deepcopy(single.scheduler)
    clip = make_clip()

    def effect(pipe, clip):
        x = latents(1, dtype=pipe.unet.dtype)
        options = {"latents": x, "steps": 1, "guidance_scale": 1.0}
        with Guidance(CLIPReward(clip, "a red apple"), scale=3000.0, mode=mode).attach(pipe):
            guided = generate(pipe, **options)
        return guided.double() - generate(pipe, **options).double()

    expected = effect(single, clip)
    found = effect(half, copy.deepcopy(clip).to(dtype))
    assert similarity(found, expected).min() > 0.95


def test_an_image_without_a_finite_gradient_leaves_the_others_alone(tiny_pipeline):
    pipe = tiny_pipeline()
    half = with_vae(pipe, copy.deepcopy(pipe.vae).half())
    half.vae.register_to_config(force_upcast=False)
    x0 = latents(3, dtype=torch.float32)

    def broken(images):
        return contrast(images) * torch.tensor([1.0, float("inf"), 1.0])[: len(images)]

    found = gradient(half, Decoding(), x0, broken)
    alone = gradient(half, Decoding(), x0[:1])
    assert not found[1].isfinite().all()
    assert found[[0, 2]].isfinite().all()
    torch.testing.assert_close(found[:1], alone, rtol=0.01, atol=0.01 * alone.abs().max().item())


def test_the_gradient_is_in_single_precision_or_better(tiny_pipeline):
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        decoder = Decoder(tiny_pipeline(dtype=torch.float32), "latent")
        found = reward_gradient(lambda x: x.square().flatten(1).sum(1), decoder, latents(dtype=dtype).to(expected))
        assert found.gradient.dtype == expected
