"""The contrastive loss against a float64 oracle written with loops, finite differences and transformers' loss."""

import math

import numpy as np
import pytest
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, contrastive_loss, similarity_logits


def oracle(images: np.ndarray, texts: np.ndarray, log_scale: float, groups: list[int] | None = None) -> float:
    """Radford et al. figure 3, term by term."""
    n = len(images)
    logits = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            cos = images[i] @ texts[j] / math.sqrt(images[i] @ images[i]) / math.sqrt(texts[j] @ texts[j])
            logits[i, j] = math.exp(log_scale) * cos
    total = 0.0
    for i in range(n):
        for row in (logits[i], logits[:, i]):
            others = [row[j] for j in range(n) if groups is None or j == i or groups[j] != groups[i]]
            total += math.log(sum(math.exp(x - row[i]) for x in others))
    return total / (2 * n)


def embeddings(n: int = 7, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 1, 4, 0, 1]])
def test_value_and_gradients_equal_the_oracle(groups):
    images, texts = embeddings()
    scale = torch.tensor([1.7], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (images, texts, scale)]
    ids = None if groups is None else torch.tensor(groups)
    loss = contrastive_loss(*inputs, ids)
    gradients = torch.autograd.grad(loss, inputs)

    arrays = [x.detach().numpy().copy() for x in inputs]
    assert loss.item() == pytest.approx(oracle(arrays[0], arrays[1], float(arrays[2][0]), groups), abs=1e-12)
    step = 1e-6
    for array, gradient in zip(arrays, gradients, strict=True):
        for index in np.ndindex(array.shape):
            kept, values = array[index], []
            for sign in (1, -1):
                array[index] = kept + sign * step
                values.append(oracle(arrays[0], arrays[1], float(arrays[2][0]), groups))
            array[index] = kept
            assert gradient[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_equals_transformers():
    images, texts = embeddings()
    scale = torch.tensor(2.0, dtype=torch.float64)
    expected = image_text_contrastive_loss(similarity_logits(texts, images, scale))
    torch.testing.assert_close(contrastive_loss(images, texts, scale), expected, rtol=0, atol=1e-14)


def test_says_nothing_costs_log_n():
    same = torch.ones(6, 4)
    assert contrastive_loss(same, same, torch.zeros(1)).item() == pytest.approx(math.log(6))


def test_invariant_to_the_length_of_embeddings_and_the_order_of_pairs():
    images, texts = embeddings()
    loss = contrastive_loss(images, texts, torch.ones(1))
    order = torch.randperm(len(images))
    lengths = torch.rand(len(images), 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(contrastive_loss(images * lengths, texts, torch.ones(1)), loss)
    torch.testing.assert_close(contrastive_loss(images[order], texts[order], torch.ones(1)), loss)


def test_a_shared_caption_is_no_negative():
    """Nothing is left to tell apart where all captions are the same."""
    images, texts = embeddings(2)
    scale, groups = torch.ones(1), torch.tensor([5, 5])
    assert contrastive_loss(images, texts, scale) > 0.1
    # two pairs of one caption have no negatives at all: nothing is left to be wrong about
    assert contrastive_loss(images, texts, scale, groups).item() == 0


def test_the_temperature_is_clamped_at_100():
    images, texts = embeddings()
    scale = torch.tensor([MAX_LOGIT_SCALE + 1], dtype=torch.float64, requires_grad=True)
    logits = similarity_logits(images, texts, scale)
    torch.testing.assert_close(logits, similarity_logits(images, texts, torch.tensor([MAX_LOGIT_SCALE])))
    assert logits.abs().max() <= 100 + 1e-9
    assert torch.autograd.grad(logits.sum(), scale)[0].item() == 0


def test_half_precision_is_computed_in_float32():
    images, texts = (x.bfloat16() for x in embeddings())
    assert contrastive_loss(images, texts, torch.ones(1)).dtype == torch.float32


def test_errors_say_what_arrived():
    with pytest.raises(ValueError, match=r"one shape \(N, d\), got \(3, 4\) and \(2, 4\)"):
        contrastive_loss(torch.ones(3, 4), torch.ones(2, 4), torch.ones(1))
    with pytest.raises(ValueError, match=r"groups of shape \(3,\).*got \(2,\)"):
        contrastive_loss(torch.ones(3, 4), torch.ones(3, 4), torch.ones(1), torch.zeros(2))
