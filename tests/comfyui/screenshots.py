"""Run the example graphs on the packaged model in the real ComfyUI, in a browser, and take the docs' screenshots.

    COMFYUI_PATH=... COMFYUI_PYTHON=... python tests/comfyui/screenshots.py docs/images

ComfyUI's Python needs what ComfyUI requires and this package; this one needs selenium, Chromium and chromedriver.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from selenium import webdriver

ROOT = Path(__file__).resolve().parents[2]
NODES, ADDRESS, SIZE = ROOT / "pipelines" / "comfyui", "http://127.0.0.1:8199", (1560, 1020)
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars"
WIDGETS = {
    "EmptyLatentImage": [128, 128, 4],  # ComfyUI counts 8 pixels per latent, this model has 4
    "KSampler": [3, "fixed", 20, 3.0, "euler_ancestral", "normal", 1.0],
    "BasicScheduler": ["normal", 20, 1.0],
    "SamplerCustom": [True, 3, "fixed", 3.0],
    "ClipGuidanceSteer": ["a red apple", 30.0, 0.0, 1.0, 0.0, 4, 0, "fixed", "auto"],
    "ClipGuidanceBestOf": ["a red apple", 4],
}


def on_the_packaged_model(graph: dict) -> dict:
    """Put the packaged model in the place of a graph's checkpoint and texts, and small settings."""
    nodes = {each["id"]: each for each in graph["nodes"]}
    (loader,) = (each for each in nodes.values() if each["type"] == "CheckpointLoaderSimple")
    texts = [number for number, each in nodes.items() if each["type"] == "CLIPTextEncode"]
    loader |= {"type": "TestEmoji", "widgets_values": ["a red apple"], "size": [320, 150], "pos": [0, -60]}
    names = {"model": "MODEL", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING"}
    loader["outputs"] = [{"name": name, "type": kind, "links": []} for name, kind in names.items()]
    places = {(loader["id"], 0): 0, (loader["id"], 2): 1} | {(text, 0): 2 + i for i, text in enumerate(texts)}
    links = [each for each in graph["links"] if each[3] not in texts]
    for link in links:
        if (link[1], link[2]) in places:
            link[1:3] = loader["id"], places[link[1], link[2]]
            loader["outputs"][link[2]]["links"].append(link[0])
    for each in nodes.values():
        each["widgets_values"] = WIDGETS.get(each["type"], each["widgets_values"])
    judges = ["emoji", "emoji-judge"]
    for each in (one for one in nodes.values() if one["type"] == "ClipGuidanceLoad"):
        each["widgets_values"] = ["CLIP", judges.pop(0)]
    return graph | {"links": links, "nodes": [each for each in nodes.values() if each["id"] not in texts]}


def wait(address: str, done, seconds: float = 600):
    """Ask an address until its answer is what is waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                found = json.load(answer)
            if done(found):
                return found
        except OSError:
            pass
        time.sleep(1)
    raise TimeoutError(f"{address}: not done after {seconds} s")


def shoot(driver, graph: dict, path: Path) -> None:
    """Run a graph in the page and take a picture of it."""
    driver.get(ADDRESS)
    time.sleep(20)
    before = wait(f"{ADDRESS}/history", lambda _: True)
    driver.execute_script("app.loadGraphData(arguments[0])", graph)
    time.sleep(5)
    driver.execute_script("app.queuePrompt(0)")
    history = wait(f"{ADDRESS}/history", lambda found: len(found) > len(before))
    (latest,) = (found for number, found in history.items() if number not in before)
    assert latest["status"]["status_str"] == "success", latest["status"]
    driver.execute_script("app.canvas.ds.scale = 0.82; app.canvas.ds.offset = [90, 210]; app.canvas.setDirty(true, true)")
    time.sleep(5)
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(folder: Path) -> None:
    comfyui, python = Path(os.environ["COMFYUI_PATH"]), os.environ.get("COMFYUI_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as scratch:
        nodes = Path(scratch) / "nodes"
        nodes.mkdir()
        (nodes / "clip_guidance_nodes").symlink_to(NODES)
        (nodes / "emoji_nodes.py").symlink_to(Path(__file__).with_name("emoji_nodes.py"))
        (Path(scratch) / "default").mkdir()
        (Path(scratch) / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), "utf-8")
        paths = Path(scratch) / "paths.yaml"
        paths.write_text(f"tests:\n  base_path: {scratch}\n  custom_nodes: nodes\n", "utf-8")
        command = [python, "main.py", "--cpu", "--port", ADDRESS.rpartition(":")[2], "--extra-model-paths-config"]
        folders = ["--output-directory", scratch, "--user-directory", scratch, "--database-url", "sqlite:///:memory:"]
        server = subprocess.Popen([*command, str(paths), *folders], cwd=comfyui)
        try:
            wait(f"{ADDRESS}/system_stats", bool)
            options = webdriver.ChromeOptions()
            for flag in [*FLAGS.split(), f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={scratch}/profile"]:
                options.add_argument(flag)
            driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
            for name, image in (("clip_guidance", "comfyui-guidance"), ("particles", "comfyui-particles")):
                graph = json.loads((NODES / "example_workflows" / f"{name}.json").read_text("utf-8"))
                shoot(driver, on_the_packaged_model(graph), folder / f"{image}.png")
            driver.quit()
        finally:
            server.terminate()
            server.wait()


main(Path(sys.argv[1]))
