"""Aesthetic heads: the published answers of LAION's, the affine map written out, and refusals."""

import pytest
import torch
from helpers.factories import make_clip
from safetensors.torch import load_file, save_file

from clip_guidance.clip.hub import ModelError
from clip_guidance.metrics.aesthetic import AestheticHead, aesthetic_score


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def head_file(folder, **tensors):
    save_file(tensors, folder / "head.safetensors")
    return folder / "head.safetensors"


def test_laions_head_gives_its_published_scores(shared_data, clip):
    golden = load_file(shared_data / "scorers" / "laion_aesthetic_vit_l_14_golden.safetensors")
    head = AestheticHead.from_file(shared_data / "scorers" / "laion_aesthetic_vit_l_14.safetensors")
    assert head.name == "aesthetic:laion_aesthetic_vit_l_14"
    torch.testing.assert_close(head.scores(clip, golden["embeddings"]), golden["scores"], rtol=0, atol=1e-5)
    assert golden["scores"].max() - golden["scores"].min() > 5  # the ten tell a wrong head from the right one


@pytest.mark.parametrize("name,width", [("vit_b_16", 512), ("vit_b_32", 512), ("vit_l_14", 768)])
def test_laions_heads_refuse_a_clip_of_another_width(shared_data, clip, name, width):
    path = shared_data / "scorers" / f"laion_aesthetic_{name}.safetensors"
    with pytest.raises(ModelError, match=f"was fitted to embeddings of width {width}, but those of .* have 24"):
        aesthetic_score(clip, torch.rand(1, 3, 32, 32), path)


def test_is_affine_in_the_unit_embedding(clip, tmp_path):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    path = head_file(tmp_path, weight=weight, bias=torch.tensor([5.0]))
    expected = torch.tensor(
        [sum(w * e for w, e in zip(weight[0], embed, strict=True)) + 5 for embed in clip.encode_image(images)]
    )
    torch.testing.assert_close(aesthetic_score(clip, images, path), expected)
    turned = AestheticHead("turned", -weight[0], torch.tensor(-5.0))
    torch.testing.assert_close(aesthetic_score(clip, images, turned), -expected)


def test_the_record_tells_heads_apart(clip, tmp_path):
    one = AestheticHead.from_file(head_file(tmp_path, weight=torch.ones(1, 24), bias=torch.zeros(1)))
    same = AestheticHead.from_file(head_file(tmp_path, weight=torch.ones(1, 24), bias=torch.zeros(1)))
    other = AestheticHead.from_file(head_file(tmp_path, weight=torch.ones(1, 24), bias=torch.ones(1)))
    assert one.record(clip) == same.record(clip)
    assert one.record(clip)["head"] != other.record(clip)["head"]
    assert one.name == other.name and one.record(clip)["definition"] != other.record(clip)["definition"]


def test_refused_files(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    cases = {
        tmp_path / "head.pth": "a .pth file is a pickle, which can run code; expected safetensors",
        tmp_path / "gone.safetensors": "gone.safetensors: no such file",
        tmp_path / "bad.safetensors": "bad.safetensors: cannot be read as safetensors",
    }
    for path, message in cases.items():
        with pytest.raises(ModelError, match=message):
            AestheticHead.from_file(path)


@pytest.mark.parametrize(
    "tensors,found",
    [
        ({"weight": torch.ones(1, 4)}, r"\{'weight': \(1, 4\)\}"),
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, r"\{'bias': \(2,\), 'weight': \(2, 4\)\}"),
        ({"weight": torch.ones(4), "bias": torch.ones(1)}, r"\{'bias': \(1,\), 'weight': \(4,\)\}"),
        ({"weight": torch.ones(()), "bias": torch.ones(1)}, r"\{'bias': \(1,\), 'weight': \(\)\}"),
        ({"layers.0.weight": torch.ones(1, 4)}, r"\{'layers.0.weight': \(1, 4\)\}"),
    ],
)
def test_what_is_no_linear_head(tmp_path, tensors, found):
    with pytest.raises(ModelError, match=rf"expected a head of weight \(1, d\) and bias \(1,\), got {found}"):
        AestheticHead.from_file(head_file(tmp_path, **tensors))
