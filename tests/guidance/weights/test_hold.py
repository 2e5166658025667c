"""What guidance sets on a network for a while survives until the last thread is through, and is then as before."""

from types import SimpleNamespace

import pytest
from diffusers import AutoencoderKL
from torch import nn

from clip_guidance.guidance.engine.decoder import _recomputed
from clip_guidance.guidance.engine.tape import _differentiable
from clip_guidance.guidance.weights.hold import held
from clip_guidance.guidance.weights.offload import no_neighbour_offload


def overlapping(make, inside):
    """Two blocks, of which the first ends while the second is open, as two threads have them."""
    first, second = make(), make()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    inside()
    second.__exit__(None, None, None)


@pytest.mark.parametrize("before", [{}, {"value": 1}])
def test_the_last_to_leave_restores_the_attribute(before):
    obj, released = SimpleNamespace(**before), []

    def inside():
        assert obj.value == 2 and not released

    overlapping(lambda: held(obj, "value", 2, lambda: released.append(vars(obj).copy())), inside)
    assert vars(obj) == before and released == [before]


def test_a_network_keeps_the_attribute_that_it_lacks_until_no_thread_reads_it():
    network = nn.Linear(1, 1)

    def inside():
        assert network.gradient_checkpointing is False

    overlapping(lambda: _differentiable(network), inside)
    assert not hasattr(network, "gradient_checkpointing")


def test_blocks_are_recomputed_until_no_thread_asks_for_it():
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)

    def inside():
        assert vae.is_gradient_checkpointing

    overlapping(lambda: _recomputed(vae), inside)
    assert not vae.is_gradient_checkpointing


def test_the_neighbour_of_an_offloaded_network_comes_back():
    network, neighbour = nn.Linear(1, 1), object()
    network._hf_hook = SimpleNamespace(prev_module_hook=neighbour)

    def inside():
        assert network._hf_hook.prev_module_hook is None

    overlapping(lambda: no_neighbour_offload(network), inside)
    assert network._hf_hook.prev_module_hook is neighbour
