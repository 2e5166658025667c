"""Run the nodes in the real ComfyUI, headless on the CPU, and print what the test wants to know, as JSON.

It is a program, since ComfyUI reads its options from the command line and takes the names `nodes` and `execution`.
Its model is a UNet of ComfyUI's own class with few channels; it stands for Stable Diffusion with any prediction.

    COMFYUI_PATH=... python tests/comfyui/real_graphs.py folder
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

FOLDER, COMFYUI = Path(sys.argv[1]), os.environ["COMFYUI_PATH"]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, COMFYUI)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import clip_guidance as cg  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
from helpers.factories import TinyCLIP  # noqa: E402

NODES = ROOT / "pipelines" / "comfyui"
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 4, "context_dim": 16, "num_heads": 2, "use_spatial_transformer": True,
    "legacy": False, "use_checkpoint": False, "dtype": torch.float32,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
KINDS = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v": comfy.model_base.ModelType.V_PREDICTION,
    "flow": comfy.model_base.ModelType.FLOW,
    "edm": comfy.model_base.ModelType.EDM,
}
SEED, STEPS, CFG, BATCH, STRENGTH = 3, 6, 2.0, 2, 200.0
PROMPT = "a red apple"
found: dict[str, torch.Tensor] = {}  # what the graphs put out, by a name


class Checkpoint:
    """Load the tiny model as ComfyUI loads others: in inference mode, from a file."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("MODEL", "VAE", "CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(KINDS),)}}

    def load(self, kind):
        config = comfy.supported_models.SD15(UNET)
        config.unet_config = dict(UNET)
        model = comfy.model_base.BaseModel(config, KINDS[kind])
        model.diffusion_model.load_state_dict(comfy.utils.load_torch_file(str(FOLDER / "unet.safetensors")))
        vae = comfy.sd.VAE(
            comfy.utils.load_torch_file(str(FOLDER / "vae.safetensors")),
            config={"params": {"ddconfig": VAE, "embed_dim": 4}},
        )
        vae.upscale_ratio = vae.downscale_ratio = 2
        cpu = torch.device("cpu")
        texts = comfy.utils.load_torch_file(str(FOLDER / "texts.safetensors"))
        return (
            comfy.model_patcher.ModelPatcher(model.eval(), cpu, cpu),
            vae,
            [[texts["positive"], {}]],
            [[texts["negative"], {}]],
        )


class Guide:
    """A CLIP whose gradient is smooth, so that rounding stays small: that of the packaged one jumps, as a ReLU's."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("CLIP_GUIDE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        torch.manual_seed(2)
        with torch.inference_mode(False):
            return (TinyCLIP(),)


class Output:
    """Hand a tensor out of the graph."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "hand_out", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "latents": ("LATENT",), "name": ("STRING", {})}}

    def hand_out(self, images, latents, name):
        found[name] = images.clone()
        return ()


def graph(kind: str, name: str = "emoji", sampler: str = "euler", **options) -> dict:
    """A graph in ComfyUI's API format, with the guidance node unless its strength is None."""
    steer = {
        "prompt": PROMPT, "strength": STRENGTH, "start": 0.0, "stop": 1.0, "damping": 0.0, "cutouts": 1, "seed": 0,
        "decoding": "full", "model": ["1", 0], "vae": ["1", 1], "guide": ["2", 0],
    } | options  # fmt: skip
    model = ["1", 0] if steer["strength"] is None else ["3", 0]
    made = {
        "1": ("TestCheckpoint", {"kind": kind}),
        "2": ("ClipGuidanceLoad", {"kind": "CLIP", "name": name}) if name else ("TestGuide", {}),
        "3": ("ClipGuidanceSteer", steer),
        "4": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": BATCH}),
        "5": (
            "KSampler",
            {
                "model": model, "seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": sampler,
                "scheduler": "simple", "positive": ["1", 2], "negative": ["1", 3], "latent_image": ["4", 0],
                "denoise": 1.0,
            },
        ),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 1]}),
        "7": ("TestOutput", {"images": ["6", 0], "latents": ["5", 0], "name": "image"}),
    }  # fmt: skip
    if steer["strength"] is None:
        del made["2"], made["3"]
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in made.items()}


class Server:
    client_id, last_node_id = None, None

    def send_sync(self, *args):
        pass


def run(prompt: dict) -> list[str]:
    """Validate and execute a graph; returns the errors, each with the class of its node."""
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    errors = [f"{each['class_type']}: {one['details']}" for each in node_errors.values() for one in each["errors"]]
    if not valid:
        return errors or [str(error)]
    executor = execution.PromptExecutor(Server())
    executor.execute(prompt, "test", {}, outputs)
    for event, data in executor.status_messages:
        if event == "execution_error":
            errors.append(f"{data['node_type']}: {data['exception_message'].strip()}")
    return errors


def by_attach(kind: str) -> torch.Tensor:
    """The image of the same networks and noise in a loop of diffusers' scheduler, with the guidance attached."""
    model, vae, ((positive, _),), ((negative, _),) = Checkpoint().load(kind)
    model, sampling = model.model, model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    if kind == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
    else:
        name = {"epsilon": "epsilon", "v": "v_prediction", "edm": "sample"}[kind]
        scheduler = EulerDiscreteScheduler(prediction_type=name)
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = sigmas  # its own are rounded otherwise

    def to_image(x0):
        return (vae.first_stage_model.decode(model.process_latent_out(x0)) + 1) / 2

    pipe = SimpleNamespace(scheduler=scheduler, unet=model.diffusion_model)
    noise = torch.randn(BATCH, 4, 16, 16, generator=torch.manual_seed(SEED))
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    guidance = cg.CLIPGuidance(*Guide().load(), PROMPT, STRENGTH, to_image=to_image)
    with guidance.attach(pipe), torch.no_grad():
        for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
            level = sigma.expand(BATCH)
            scaled = sampling.calculate_input(level, x)
            time = sampling.timestep(level).float()
            conditional, unconditional = (
                model.diffusion_model(scaled, time, context=text.expand(BATCH, -1, -1)) for text in (positive, negative)
            )
            output = unconditional + CFG * (conditional - unconditional)
            if kind == "edm":
                output = sampling.calculate_denoised(level, output, x)
            x = scheduler.step(output, timestep, x).prev_sample
        return vae.decode(model.process_latent_out(x))


def save_networks() -> None:
    torch.manual_seed(0)
    config = comfy.supported_models.SD15(UNET)
    config.unet_config = dict(UNET)
    model = comfy.model_base.BaseModel(config)
    vae = comfy.sd.AutoencoderKL(ddconfig=VAE, embed_dim=4)
    for network in (model.diffusion_model, vae):
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            else:
                torch.nn.init.constant_(weight, float(name.endswith("weight")))  # scales of norms, and biases
    vae.decoder.conv_out.weight.data *= 0.1  # keeps images inside [0, 1]: the gradient jumps where pixels are clipped
    save_file({k: v.contiguous() for k, v in model.diffusion_model.state_dict().items()}, FOLDER / "unet.safetensors")
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, FOLDER / "vae.safetensors")
    save_file({k: torch.randn(1, 5, 16) for k in ("positive", "negative")}, FOLDER / "texts.safetensors")


def compare(kind: str) -> dict[str, float]:
    errors = run(graph(kind, ""))
    assert not errors, errors
    guided = found.pop("image")
    assert not run(graph(kind, strength=None))
    plain = found.pop("image")
    assert not run(graph(kind, "", strength=0.0))
    none = found.pop("image")
    return {
        "difference": float((guided - by_attach(kind)).abs().max()),
        "moved": float((guided - plain).abs().max()),
        "least": float(guided.min()),
        "largest": float(guided.max()),
        "without strength": float((none - plain).abs().max()),
    }


def main() -> None:
    asyncio.run(nodes.load_custom_node(str(NODES)))
    nodes.NODE_CLASS_MAPPINGS |= {"TestCheckpoint": Checkpoint, "TestGuide": Guide, "TestOutput": Output}
    save_networks()
    result = {kind: compare(kind) for kind in KINDS}
    result["errors"] = {"clip": run(graph("epsilon", str(FOLDER))), "name": run(graph("epsilon", "nothing"))}
    result["errors"]["window"] = run(graph("epsilon", start=0.5, stop=0.2))
    result["errors"]["target"] = run(graph("epsilon", prompt=" "))
    options = {"sampler": "dpmpp_2m_sde", "cutouts": 3, "decoding": "auto"}
    result["errors"]["packaged"] = run(graph("epsilon", "emoji", **options))
    result["packaged"] = list(found.pop("image").shape)
    print(json.dumps(result))


main()
