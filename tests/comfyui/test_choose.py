"""The nodes that load, score and choose, and the example graph."""

import json

import pytest
import torch
from helpers.comfyui import FOLDER, load_nodes, part
from helpers.factories import TinyCLIP
from PIL import Image

import clip_guidance as cg

IMAGES = torch.rand(4, 12, 10, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(2)
    return TinyCLIP()


def node(name):
    return load_nodes().NODE_CLASS_MAPPINGS[f"ClipGuidance{name}"]()


def cosines(clip):
    pixels = IMAGES.movedim(-1, 1)
    return (clip.image_embeds(clip.image_processor.differentiable(pixels)) @ clip.encode_text(["a cat"]).T)[:, 0]


def test_the_best_come_first_with_their_latents(clip):
    order = cosines(clip).argsort(descending=True)[:2]
    latents = {"samples": torch.arange(4.0).view(4, 1, 1, 1), "batch_index": [3, 4, 5, 6], "noise_mask": None}
    with torch.inference_mode():
        images, kept, rewards = node("BestOf").choose(IMAGES.clone(), clip, "a cat", 2, latents)
    assert images.equal(IMAGES[order])
    assert kept["samples"].flatten().tolist() == order.tolist()
    assert kept["batch_index"] == [3 + each for each in order.tolist()]
    expected = clip.logit_scale.exp() * cosines(clip)[order]
    assert rewards == pytest.approx(expected.tolist(), abs=1e-5)


def test_more_than_there_are_keeps_all(clip):
    images, latents, _ = node("BestOf").choose(IMAGES, clip, "a cat", 9)
    assert len(images) == 4 and latents is None


def test_latents_of_other_images_are_refused(clip):
    with pytest.raises(ValueError, match="expected the latents of the images, one for each: got 3 for 4"):
        node("BestOf").choose(IMAGES, clip, "a cat", 1, {"samples": torch.zeros(3, 4, 2, 2)})


@pytest.mark.slow
def test_scores_are_those_of_the_package(clip):
    judge = cg.CLIP.from_pretrained("emoji-judge")
    with torch.inference_mode():
        found = node("Score").score(IMAGES.clone(), judge, "a red apple", "cosine")
    eight_bit = [Image.fromarray((image * 255).round().byte().numpy()) for image in IMAGES]
    scores, text = found["result"]
    assert scores == pytest.approx(cg.clip_score(judge, eight_bit, "a red apple", "cosine").tolist(), abs=0.01)
    assert text.splitlines()[0] == f"0: {scores[0]:.4f}" and found["ui"]["text"] == [text]


@pytest.mark.slow
def test_a_clip_is_loaded_so_that_it_can_be_differentiated():
    with torch.inference_mode():
        (clip,) = node("Load").load("CLIP", "emoji")
    assert not any(weight.is_inference() for weight in clip.parameters())


def test_a_name_that_can_be_nothing_is_refused_before_the_graph_runs(tmp_path):
    validate = node("Load").VALIDATE_INPUTS
    assert validate("CLIP", "emoji") is True
    assert validate("reward", "pickscore") is True
    assert validate("CLIP", "openai/clip-vit-base-patch32") is True
    assert validate("CLIP", str(tmp_path)) is True
    assert validate("reward", "emoji").startswith("no reward 'emoji': expected one of pickscore, hpsv2.1")
    assert validate("CLIP", "/nowhere/model").startswith("no CLIP '/nowhere/model'")


def test_a_folder_without_a_clip_says_so(tmp_path):
    with pytest.raises(cg.ModelError, match="no model: expected config.json, found nothing"):
        node("Load").load("CLIP", str(tmp_path))


@pytest.mark.slow
def test_a_preference_reward_takes_no_image():
    reward = cg.load_reward(FOLDER.parents[1] / "clip_guidance" / "models" / "emoji" / "clip", local_files_only=True)
    with pytest.raises(ValueError, match="rates whole images against texts: leave out image"):
        part("guide").as_reward(reward, "a cat", images=[torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="the prompt is empty"):
        part("guide").as_reward(reward, " ")
    assert part("guide").as_reward(reward, "a cat").prompts == ["a cat"]


def test_the_example_graphs_fit_the_nodes():
    """Every node of ours has the inputs, widgets and outputs that its class declares, and every link two ends."""
    classes, seen = load_nodes().NODE_CLASS_MAPPINGS, set()
    for path in sorted((FOLDER / "example_workflows").glob("*.json")):
        graph = json.loads(path.read_text("utf-8"))
        nodes, links = {each["id"]: each for each in graph["nodes"]}, {each[0]: each for each in graph["links"]}
        own = [each for each in nodes.values() if each["type"] in classes]
        seen |= {each["type"] for each in own}
        for each in own:
            declared = classes[each["type"]].INPUT_TYPES()
            inputs = declared["required"] | declared.get("optional", {})
            sockets = {name: spec[0] for name, spec in inputs.items() if is_socket(spec)}
            widgets = [spec for spec in inputs.values() if not is_socket(spec)]
            assert {one["name"]: one["type"] for one in each["inputs"]} == sockets
            assert len(each["widgets_values"]) == len(widgets) + sum(name == "seed" for name in inputs)  # its control
            assert [one["type"] for one in each["outputs"]] == list(classes[each["type"]].RETURN_TYPES)
        for number, source, slot, target, place, kind in links.values():
            end = nodes[target]["inputs"][place]
            assert nodes[source]["outputs"][slot]["type"] == kind == end["type"]
            assert end["link"] == number and number in nodes[source]["outputs"][slot]["links"]
    assert seen == set(classes)


def is_socket(spec):
    return isinstance(spec[0], str) and spec[0] not in ("STRING", "FLOAT", "INT")
