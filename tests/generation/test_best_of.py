"""Best of n beside the loop that a user would write: the same images, ranked by the same numbers."""

import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers.factories import TEXTS, TinyCLIP, make_clip, make_pipeline
from helpers.processes import spawned
from PIL import Image

import clip_guidance as cg
from clip_guidance.generation.best_of import FailedCandidate, best_of
from clip_guidance.generation.image import FailedImageError
from clip_guidance.guidance import CLIPReward
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.rewards.clip_rewards import PreferenceReward

CALL = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def contrast(images):
    return images.std((1, 2, 3))


def looped(pipe, prompt, seeds, **call):
    images = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        images += pipe(prompt, generator=generator, **{**CALL, "output_type": "pt", **call}).images
    return images


def assert_ranked(found, images, ratings, seeds):
    """Whether a result holds these images in the order of falling ratings."""
    order = sorted(range(len(ratings)), key=lambda place: -ratings[place])
    assert found.seeds == [seeds[place] for place in order] and found.evaluations == len(seeds) and found.seconds > 0
    assert found.rewards == pytest.approx([ratings[place] for place in order], abs=1e-5) and not found.failed
    for image, place in zip(found.images, order, strict=True):
        torch.testing.assert_close(image, images[place], rtol=0, atol=1e-5)


def test_it_is_the_loop_over_seeds(pipe):
    images = looped(pipe, "cat", range(5, 9))
    found = cg.best_of(pipe, 4, contrast, seed=5, prompt="cat", output_type="pt", **CALL)
    assert_ranked(found, images, contrast(torch.stack(images)).tolist(), [5, 6, 7, 8])
    assert found.images[0].equal(images[found.seeds[0] - 5])  # to the last bit
    together = cg.best_of(pipe, 4, contrast, seed=5, batch_size=3, prompt="cat", output_type="pt", **CALL)
    assert_ranked(together, images, contrast(torch.stack(images)).tolist(), [5, 6, 7, 8])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_each_prompt_is_ranked_by_itself_also_where_guidance_has_one_for_each(pipe, batch_size):
    clip, reward, prompts = TinyCLIP(), PreferenceReward("pickscore", make_clip()), ["a cat", "a dog"]
    with cg.CLIPGuidance(clip, prompts, scale=[3.0, -3.0]).attach(pipe):
        negative = ["dog", "bus"]
        results = cg.best_of(
            pipe, 3, reward, batch_size=batch_size, prompt=prompts, negative_prompt=negative, output_type="pt", **CALL
        )
    for prompt, scale, avoided, found in zip(prompts, (3.0, -3.0), negative, results, strict=True):
        with cg.CLIPGuidance(clip, prompt, scale=scale).attach(pipe):
            images = looped(pipe, prompt, range(3), negative_prompt=avoided)
        assert_ranked(found, images, reward.score(torch.stack(images), prompt).tolist(), [0, 1, 2])


@pytest.mark.slow
def test_embeddings_of_several_prompts_are_ranked_one_by_one(pipe):
    embeds, negative = pipe.encode_prompt(["cat", "dog"], "cpu", 1, True)
    call = {"output_type": "pt", **CALL}
    given = best_of(pipe, 2, contrast, prompt_embeds=embeds, negative_prompt_embeds=negative, **call)
    for by_embeds, by_text in zip(given, best_of(pipe, 2, contrast, prompt=["cat", "dog"], **call), strict=True):
        assert by_embeds.seeds == by_text.seeds and by_embeds.rewards == pytest.approx(by_text.rewards, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_every_form_of_reward_chooses_images_of_every_kind(pipe, output_type):
    plain = torch.stack(looped(pipe, "cat", range(3)))
    clip = make_clip()

    class Scorer:
        def score(self, images, prompts):
            assert prompts == ["cat"] * len(images)
            return contrast(images)

    def of_pil(images):
        return [float(np.asarray(image).std()) / 255 for image in images]

    expected = contrast(plain).tolist()
    rewards = {contrast: expected, of_pil: expected, Scorer(): expected}
    rewards |= {CLIPReward(clip, TEXTS[0]): CLIPReward(clip, TEXTS[0])(plain).tolist()}
    for reward, ratings in rewards.items():
        found = best_of(pipe, 3, reward, prompt="cat", output_type=output_type, **CALL)
        assert found.seeds == sorted(range(3), key=lambda seed: -ratings[seed])
        assert found.rewards == pytest.approx(sorted(ratings, reverse=True), abs=0.05)
    kind = {"pil": Image.Image, "np": np.ndarray, "pt": torch.Tensor}[output_type]
    assert isinstance(found.images[0], kind)


@pytest.mark.slow
def test_random_crops_are_the_same_for_every_candidate(pipe):
    reward = CLIPReward(make_clip(), TEXTS[0], cg.Cutouts(3))
    found = best_of(pipe, 3, reward, prompt="cat", output_type="pt", **CALL)
    for image, rating in zip(found.images, found.rewards, strict=True):
        reward.reset()
        assert reward(image[None]).item() == pytest.approx(rating, abs=1e-5)


def fake(spoil, unsafe=()):
    """A pipeline of random images, some spoilt, by their seeds."""

    def pipe(prompt, generator, num_images_per_prompt=1):
        generators = generator if isinstance(generator, list) else [generator]
        images = torch.stack([torch.rand(3, 8, 8, generator=each) for each in generators])
        seeds = [each.initial_seed() for each in generators]
        for place, seed in enumerate(seeds):
            if seed in spoil:
                images[place] = spoil[seed]
        return SimpleNamespace(images=images, nsfw_content_detected=[seed in unsafe for seed in seeds])

    return pipe


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_candidate_that_fails_costs_itself_alone(batch_size):
    pipe = fake({1: torch.nan, 2: 0.0}, unsafe=[4])

    def rated(images):
        return torch.where(images.mean((1, 2, 3)) == good[5].mean(), torch.nan, images.mean((1, 2, 3)))

    good = {seed: torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(6)}
    with pytest.warns(UserWarning, match="4 of 6 candidates failed: that of seed 1 is not finite; the others are"):
        found = best_of(pipe, 6, rated, batch_size=batch_size, prompt="cat")
    assert sorted(found.seeds) == [0, 3] and found.evaluations == 6
    assert found.rewards == pytest.approx(sorted((good[0].mean().item(), good[3].mean().item()), reverse=True))
    assert found.failed == [
        FailedCandidate(1, "is not finite"),
        FailedCandidate(2, "is of one color, (0, 0, 0)"),
        FailedCandidate(4, "was flagged by the safety checker"),
        FailedCandidate(5, "has the reward nan"),
    ]


def test_all_candidates_of_one_prompt_may_fail_but_not_of_all():
    with pytest.raises(FailedImageError, match=r"2 of 2 candidates failed: that of seed 0 is of one color, \(255, "):
        best_of(fake({0: 1.0, 1: 0.0}), 2, contrast, prompt="cat")

    def first_is_empty(prompt, generator):
        images = torch.stack([torch.rand(3, 8, 8, generator=each) for each in generator])
        images[0] = 0.5
        return SimpleNamespace(images=images)

    with pytest.warns(UserWarning, match="2 of 4 candidates failed"):
        empty, whole = best_of(first_is_empty, 2, contrast, prompt=["cat", "dog"])
    assert not empty.images and len(empty.failed) == 2 and len(whole.images) == 2


def test_ties_stay_in_the_order_of_their_seeds():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert best_of(fake({}), 3, lambda images: [7.0] * len(images), seed=-1, prompt="cat").seeds == [-1, 0, 1]


def searched(accelerator):
    """What each search finds, but for what a clock told."""
    pipe, call = make_pipeline(), {**CALL, "output_type": "pt"}
    searches = (
        (pipe, 5, {"batch_size": 2, "prompt": ["cat", "dog"], **call}),  # the second process draws one batch
        (pipe, 1, {"prompt": "cat", **CALL}),  # and here none
        (fake({1: torch.nan}), 3, {"prompt": "cat"}),
    )
    found = []
    for each, n, options in searches:
        guidance = cg.CLIPGuidance(TinyCLIP(), "a dog", scale=3.0)
        with guidance.attach(pipe), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            results = cg.best_of(each, n, contrast, accelerator=accelerator, **options)
        messages = [str(warning.message) for warning in told]
        for one in results if isinstance(results, list) else [results]:
            images = [np.asarray(image).tobytes() for image in one.images]
            found.append((images, one.rewards, one.seeds, one.evaluations, one.failed, messages))
    return found


def on_each(rank, size):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({key: str(value) for key, value in environment.items()})
    state = PartialState(cpu=True)
    assert state.num_processes == size
    return searched(state)


@pytest.mark.slow
def test_two_processes_find_what_one_finds_to_the_last_bit():
    alone = searched(None)
    assert [len(images) for images, *_ in alone] == [5, 5, 1, 2]
    assert alone[3][4] == [FailedCandidate(1, "is not finite")]
    assert spawned(2, on_each) == [alone, alone]


def test_processes_of_a_launcher_share_the_candidates(pipe):
    """One after the other; each is given what the others drew."""
    call = {"n": 5, "batch_size": 2, "prompt": "cat", "output_type": "pt", **CALL}
    alone, drawn = cg.best_of(pipe, reward=contrast, **call), {}

    def share(rank):
        def gather(own):
            drawn[rank] = own
            return [drawn.get(other, []) for other in range(2)]

        return cg.best_of(pipe, reward=contrast, accelerator=Processes(rank, 2, gather=gather), **call)

    assert sorted(share(1).seeds) == [2, 3]  # its own batch, since the first process has drawn nothing yet
    together = share(0)
    assert (together.seeds, together.rewards) == (alone.seeds, alone.rewards)
    assert all(map(torch.equal, together.images, alone.images)) and [place for place, _ in drawn[0]] == [0, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"batch_size": 1.5}, ValueError, "batch_size must be at least 1, got 1.5"),
        ({"generator": torch.Generator()}, TypeError, "best_of sets generator itself: give seed"),
        ({"num_images_per_prompt": 2}, TypeError, "best_of sets num_images_per_prompt itself: give n"),
        ({"output_type": "latent"}, ValueError, "output_type must be 'pil', 'pt' or 'np', got 'latent'"),
        ({"return_dict": False}, ValueError, "return_dict must be True"),
        ({"reward": "pickscore"}, TypeError, "expected a reward, a function of images .*; got str 'pickscore'"),
        ({"accelerator": 2}, TypeError, "accelerator must be accelerate's Accelerator or PartialState, got int 2"),
        ({"pipe": lambda **_: ([],)}, TypeError, "best_of ranks images, and function returned tuple without any"),
        ({"pipe": lambda **_: SimpleNamespace(images=[])}, ValueError, "expected 1 images for each of 1 prompts"),
    ],
)
def test_what_cannot_be_searched_is_named(options, error, message):
    given = {"pipe": fake({}), "n": 2, "reward": contrast, "prompt": "cat", **options}
    with pytest.raises(error, match=message) as caught:
        best_of(**given)
    assert len(str(caught.value)) <= 300
