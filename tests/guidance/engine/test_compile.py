"""A denoiser under torch.compile: guidance costs it nothing in mode "x0", and in mode "exact" one more compilation."""

import pytest
import torch
from helpers.factories import generate, make_clip, make_pipeline
from helpers.minimal_pipeline import modes

from clip_guidance.guidance import CLIPGuidance

CLIP = make_clip()


class Backend:
    """Compiles nothing; counts the graphs that it is given."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def whole(pipe, backend):
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)


def in_place(pipe, backend):
    pipe.unet.compile(backend=backend)


def blocks(pipe, backend):
    pipe.unet.compile_repeated_blocks(backend=backend)


ways = pytest.mark.parametrize("compiled", [whole, in_place, blocks])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Dynamo does not know how to trace"),  # hooks of a module compiled in place
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo reads it
]


@pytest.fixture
def compile_with():
    """(way, backend) -> a pipeline whose denoiser is compiled."""

    def make(way, backend):
        torch._dynamo.reset()
        pipe = make_pipeline()
        way(pipe, backend)
        return pipe

    yield make
    torch._dynamo.reset()


def latents(pipe, mode=None):
    if mode is None:
        return generate(pipe, steps=3)
    with CLIPGuidance(CLIP, "a red apple", scale=20.0, mode=mode).attach(pipe):
        return generate(pipe, steps=3)


@ways
def test_mode_x0_recompiles_nothing(compile_with, compiled):
    backend = Backend()
    pipe = compile_with(compiled, backend)
    unguided = latents(pipe)
    graphs = backend.count
    assert graphs > 0
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in pipe.unet.modules()]
    for _ in range(2):
        with CLIPGuidance(CLIP, "a red apple", scale=20.0).attach(pipe):
            assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in pipe.unet.modules()] == hooks
            guided = generate(pipe, steps=3)
    assert latents(pipe).equal(unguided)
    assert backend.count == graphs
    torch.testing.assert_close(guided, latents(make_pipeline(), "x0"))


@ways
def test_mode_exact_compiles_once_more_and_differentiates(compile_with, compiled):
    backend = Backend()
    pipe = compile_with(compiled, backend)
    unguided = latents(pipe)
    graphs = 2 * backend.count + (compiled is in_place)  # with gradients, without; in place, the hook's `detach` too
    guided = latents(pipe, "exact")
    assert backend.count == graphs > 1
    assert latents(pipe, "exact").equal(guided)
    assert latents(pipe).equal(unguided)
    assert backend.count == graphs
    torch.testing.assert_close(guided, latents(make_pipeline(), "exact"))
    assert not guided.equal(unguided)


def test_two_exact_guidances_walk_a_compiled_graph_twice(compile_with):
    def twofold(pipe):
        with CLIPGuidance(CLIP, "a red apple", scale=9.0, mode="exact").attach(pipe):
            return latents(pipe, "exact")

    expected = twofold(make_pipeline())
    torch.testing.assert_close(twofold(compile_with(whole, "aot_eager")), expected)


@modes
def test_a_compiled_decoder_is_differentiated(compile_with, mode):
    def way(pipe, backend):
        pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend=backend, fullgraph=True)

    backend = Backend()
    pipe = compile_with(way, backend)
    torch.testing.assert_close(latents(pipe, mode), latents(make_pipeline(), mode))
    assert backend.count == 1
