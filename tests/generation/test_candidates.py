"""The best of the candidates of one image: those that are drawn one by one, ranked by numbers computed by hand."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from helpers.empty_images import spoil
from helpers.factories import save_tiny_clip, save_tiny_pipeline

from clip_guidance import CLIP, CLIPGuidance, Particles, Region, WeightedRewards, load_reward
from clip_guidance.generation import batch, models
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.generation.image import FailedImageError
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.generation.targets import PlacedTarget
from clip_guidance.generation.weighted_reward import WeightedReward
from clip_guidance.guidance import CLIPReward
from clip_guidance.rewards import as_judge

BOX = (0.0, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("other"), seed=1))


@pytest.fixture(scope="module")
def settings(clip, tmp_path_factory) -> GenerateSettings:
    pipeline = str(save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"), clip))
    return GenerateSettings("a red apple", seed=7, model=pipeline, clip=clip, scale=60.0, steps=1, cutouts=2)


@pytest.fixture(scope="module")
def make() -> ImageGenerator:
    return ImageGenerator()


def logit(name, target):
    return as_judge(CLIPReward(CLIP.from_pretrained(name), target))


def assert_chosen(make, settings, candidates, rate):
    """Whether these candidates are those of the seeds, one by one, in the order of their falling ratings."""
    alone = [make(dataclasses.replace(settings, seed=settings.seed + place)) for place in range(candidates.n)]
    ratings = [float(rate(each.image)) for each in alone]
    order = sorted(range(candidates.n), key=lambda place: -ratings[place])[: candidates.keep]
    kept = make.best_of(settings, candidates)
    assert [each.image.tobytes() for each in kept] == [alone[place].image.tobytes() for place in order]
    assert [each.settings for each in kept] == [alone[place].settings for place in order]
    assert [each.choice.reward for each in kept] == pytest.approx([ratings[place] for place in order], abs=1e-4)
    places = [(each.choice.n, each.choice.first_seed, each.choice.rank) for each in kept]
    assert places == [(candidates.n, settings.seed, rank) for rank in range(1, candidates.keep + 1)]
    return kept


@pytest.mark.slow
def test_the_best_candidate_is_an_image_of_its_own_seed(make, settings, clip):
    (best,) = assert_chosen(make, settings, Candidates(2), lambda image: logit(clip, "a red apple")([image]))
    (by,) = best.record()["choice"]["ranked_by"]
    assert (by["definition"], by["model"], by["weight"]) == ("logit", clip, 1.0)
    assert by["fingerprint"] == CLIP.from_pretrained(clip).fingerprint()
    (score,) = best.scores
    assert score["guided"] and score["chose"]
    (alone,) = [make(dataclasses.replace(best.settings))]
    assert alone.image.tobytes() == best.image.tobytes() and "choice" not in alone.record()
    assert "chose" not in alone.scores[0]


@pytest.mark.slow
def test_clip_ranks_by_all_that_it_steers_to_and_by_the_opposite_where_it_steers_away(make, settings, clip):
    target = ["a blue boat", Region("a cat", BOX)]
    with_region = {"clip_prompt": target[0], "regions": (PlacedTarget("a cat", BOX),)}
    one = dataclasses.replace(settings, **with_region)
    assert_chosen(make, one, Candidates(4, keep=4), lambda image: logit(clip, [(target[0], 1.0), target[1]])([image]))
    away = dataclasses.replace(settings, scale=-60.0)
    assert_chosen(make, away, Candidates(4, keep=4), lambda image: -logit(clip, "a red apple")([image]))
    unguided = dataclasses.replace(settings, scale=0.0)
    (best,) = assert_chosen(make, unguided, Candidates(4), lambda image: logit(clip, "a red apple")([image]))
    assert not best.scores[0]["guided"] and best.scores[0]["chose"] and best.guide is None


@pytest.mark.slow
def test_the_judge_a_reward_or_the_rewards_that_steer_rank(make, settings, clip, other):
    judged = dataclasses.replace(settings, judge=other)
    reward = load_reward(other)
    raters = {"judge": logit(other, "a red apple"), other: lambda images: reward.score(images, "a red apple")}
    for by, rate in raters.items():
        (best,) = assert_chosen(make, judged, Candidates(4, rank_by=by), lambda image, rate=rate: rate([image]))
        assert [bool(score.get("chose")) for score in best.scores] == [False, True]
    assert best.choice.ranked_by == [{**reward.record(), "weight": 1.0}]
    rewards = (WeightedReward(clip, -2.0), WeightedReward(other, 5.0))
    alone = dataclasses.replace(settings, clip=None, scale=None, rewards=rewards)

    def weighted(image):
        return sum(each.weight * load_reward(each.name).score([image], "a red apple") for each in rewards)

    (best,) = assert_chosen(make, alone, Candidates(4), weighted)
    assert [by["weight"] for by in best.choice.ranked_by] == [-2.0, 5.0]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"scale": 0.0}, {}, {"scheduler": "ddpm", "scale": -60.0}], ids=str)
def test_the_image_is_the_best_particle_and_is_drawn_again(make, settings, clip, change):
    one = dataclasses.replace(settings, **change, steps=6, particles=3)
    drawn = make(one)
    choice, (score,) = drawn.choice, drawn.scores
    assert (choice.n, choice.first_seed, choice.rank) == (3, 7, 1) and score["chose"]
    sign = -1.0 if (one.scale or 0.0) < 0 else 1.0
    pipe, by_hand = make.pipeline(one), WeightedRewards([(sign, CLIPReward(CLIP.from_pretrained(clip), "a red apple"))])
    guidance = CLIPGuidance(clip, "a red apple", one.scale, cutouts=2, seed=7)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    with Particles(by_hand, 3, seed=7).attach(pipe) as particles, guidance.attach(pipe) if one.scale else nullcontext():
        call = {"num_inference_steps": 6, "guidance_scale": 3.0, "generator": generators, "eta": 1.0}
        images = pipe("a red apple", num_images_per_prompt=3, **call).images
    assert choice.reward == particles.result.rewards.max().item()
    assert images[0].tobytes() == drawn.image.tobytes() == make(drawn.settings).image.tobytes()
    assert drawn.settings.particles == 3 and drawn.record()["settings"]["particles"] == 3


def test_particles_are_refused_where_they_cannot_travel(make, settings):
    one = dataclasses.replace(settings, particles=2)
    with pytest.raises(ValueError, match="give candidates or particles: got 3 candidates of 2 particles each"):
        make.best_of(one, Candidates(3))
    with pytest.raises(ValueError, match="seed must be from"):
        make(dataclasses.replace(one, seed=2**63 - 1))
    with pytest.raises(ValueError, match="pipelines that take num_images_per_prompt, which Own does not"):
        batch._of_particles(one, {"prompt": None}, "Own")


def test_candidates_that_fail_are_named_and_the_others_ranked(make, settings, monkeypatch):
    plain = dataclasses.replace(settings, scale=0.0)
    spoil(monkeypatch, 7, 9)
    kept = make.best_of(plain, Candidates(3, keep=2))
    assert [each.settings.seed for each in kept] == [8]
    black = "is of one color, (0, 0, 0)"
    assert kept[0].choice.failed == [{"seed": 7, "reason": black}, {"seed": 9, "reason": black}]
    message = r"\(seed 9\) has no candidate: all 1 failed, that of seed 9 is of one color, .* too large \(scale 0.0"
    with pytest.raises(FailedImageError, match=message) as raised:
        make.best_of(dataclasses.replace(plain, seed=9), Candidates(1))
    assert len(str(raised.value)) <= 300


def test_a_candidate_without_a_finite_reward_fails(make, settings, monkeypatch):
    plain = dataclasses.replace(settings, scale=0.0)
    ratings = iter([1.0, float("nan")])
    rated = lambda judge, images: torch.tensor([next(ratings)])  # noqa: E731
    monkeypatch.setattr("clip_guidance.rewards.ImageJudge.ratings", rated)
    (best,) = make.best_of(plain, Candidates(2))
    assert best.settings.seed == 7 and best.choice.failed == [{"seed": 8, "reason": "has the reward nan"}]


@pytest.mark.parametrize(
    ("change", "candidates", "message"),
    [
        ({"seed": 2**63 - 2}, {}, "seed must be from"),
        ({"clip": None, "scale": 0.0}, {}, "comes without a clip to rank its candidates: name a CLIP or a reward"),
        ({}, {"rank_by": "judge"}, "comes without a judge to rank its candidates"),
        ({}, {"rank_by": "pikscore"}, "pikscore: neither a folder"),
    ],
)
def test_what_cannot_be_ranked_is_told_before_it_is_drawn(make, settings, monkeypatch, change, candidates, message):
    monkeypatch.setattr(models, "draw_batch", None)
    with pytest.raises(ValueError, match=message):
        make.best_of(dataclasses.replace(settings, **change), Candidates(3, **candidates))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n, the number of candidates, must be from 1 to 10,000, got 0"),
        ({"n": 10_001}, "must be from 1 to 10,000, got 10001"),
        ({"n": 2, "keep": 3}, "keep must be from 1 to 2, the number of candidates, got 3"),
        ({"n": 2, "keep": 0}, "keep must be from 1 to 2"),
        ({"n": 2, "rank_by": " "}, "rank_by must name what ranks the candidates, got an empty name"),
    ],
)
def test_bad_numbers_of_candidates(values, message):
    with pytest.raises(ValueError, match=message):
        Candidates(**values)
