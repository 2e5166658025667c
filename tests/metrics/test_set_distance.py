"""Distances of sets of images: each on the features it is defined on, with what it depends on beside it."""

import pytest
import torch
from helpers.factories import make_clip
from torch.nn.functional import normalize

from clip_guidance.metrics.cmmd import cmmd
from clip_guidance.metrics.features import image_features
from clip_guidance.metrics.fid import frechet_distance
from clip_guidance.metrics.kid import kernel_distance
from clip_guidance.metrics.set_distance import DEFINITIONS, set_distances

MADE, REAL = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)).split([5, 7])


@pytest.fixture(scope="module")
def clip():
    return make_clip("resnet")


def test_every_distance_is_taken_on_its_own_features(clip):
    found = set_distances(clip, MADE, REAL, "noise", tuple(DEFINITIONS))
    a, b = clip.encode_image(MADE), clip.encode_image(REAL)
    assert found["cmmd"].value == pytest.approx(cmmd(a, b), rel=1e-4)
    assert found["kid"].value == pytest.approx(kernel_distance(image_features(clip, MADE), image_features(clip, REAL)))

    @torch.no_grad()
    def projections(images):
        pixels = torch.stack([clip.preprocess(image) for image in images])
        return clip.visual_projection(clip.image_encoder(pixels).pooler_output)

    expected = frechet_distance(projections(MADE), projections(REAL))
    assert found["clip-fid"].value == pytest.approx(expected, rel=1e-4)
    unit = frechet_distance(normalize(projections(MADE)), normalize(projections(REAL)))
    assert abs(unit - expected) > 1e-3 * expected  # the unit embeddings would have told


def test_the_result_says_what_it_depends_on(clip):
    record = set_distances(clip, MADE, REAL, "noise, 7 images")["cmmd"].record()
    assert (record["definition"], record["count"], record["reference_count"]) == ("cmmd", 5, 7)
    assert (record["reference"], record["bandwidth"], record["scale"]) == ("noise, 7 images", 10.0, 1000.0)
    assert record["fingerprint"] == clip.fingerprint() and record["estimate"] == "biased"
    assert all(isinstance(value, (str, int, float)) for value in record.values())


@pytest.mark.parametrize(
    "sets,options,message",
    [
        ((MADE, REAL), {"definitions": ["fid"]}, "no set distance 'fid'; there are cmmd, kid, clip-fid"),
        ((MADE, REAL), {"reference": " "}, "expected the name of the reference set"),
        ((MADE[:1], REAL), {}, r"n, m at least 2, got \(1, 24\) and \(7, 24\)"),
    ],
)
def test_errors(clip, sets, options, message):
    with pytest.raises(ValueError, match=message):
        set_distances(clip, *sets, **{"reference": "noise", **options})
