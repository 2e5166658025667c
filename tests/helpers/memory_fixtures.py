"""A pipeline and a guidance whose memory is planned."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from clip_guidance.guidance import CLIPGuidance
from clip_guidance.guidance.memory import plan as memory
from helpers.factories import make_clip, make_pipeline

SIDE = 64  # of the images, in pixels
VIEWS = 6


def make_tiny_decoder():
    widths = {f"{part}_block_out_channels": (4, 4) for part in ("encoder", "decoder")}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    torch.manual_seed(0)
    decoder = AutoencoderTiny(**widths, **blocks).eval()
    last = decoder.decoder.layers[-1]
    last.weight.data *= 0.1  # images lie inside [0, 1], where nothing is clipped
    last.bias.data.fill_(0.5)
    return decoder


def make_wide_pipeline():
    """Its decoder is nearly as deep as Stable Diffusion's, and so has attention."""
    pipe = make_pipeline()
    pipe.vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        force_upcast=False,
    ).eval()
    return pipe


def make_guidance():
    return CLIPGuidance(make_clip(), "a red apple", cutouts=VIEWS)


def estimate(guidance, pipe, decoding, chunk=None, batch=1, side=SIDE):
    return memory._Estimate(guidance, pipe, side, side, batch, None).bytes(decoding, chunk)
