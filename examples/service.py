"""Draw and score images for many clients at once, by FastAPI (which the extra ``ui`` brings).

python examples/service.py --pipelines 2
curl "localhost:8000/draw?prompt=a+noto+picture+of+a+rocket&scale=10" --output rocket.png
curl "localhost:8000/score?text=a+rocket" --data-binary @rocket.png
"""

import argparse
import io
import queue

import torch
import uvicorn
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse

import clip_guidance as cg


def make_app(pipeline: str = "emoji", clip: str = "emoji", judge: str = "emoji-judge", pipelines: int = 2) -> FastAPI:
    """Serve with several pipelines that share their weights: a run has a pipeline, so a scheduler, to itself."""
    app, idle = FastAPI(), queue.Queue()
    guide, scorer, first = cg.CLIP.from_pretrained(clip), cg.CLIP.from_pretrained(judge), cg.load_pipeline(pipeline)
    for _ in range(pipelines):
        scheduler = type(first.scheduler).from_config(first.scheduler.config)
        idle.put(type(first)(**{**first.components, "scheduler": scheduler}))

    @app.exception_handler(ValueError)
    def refuse(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.get("/draw")
    def draw(prompt: str, scale: float = 10.0, seed: int = 0, steps: int = 10) -> Response:  # in a thread of FastAPI's
        guidance = cg.CLIPGuidance(guide, prompt, scale)  # before a pipeline is taken: a bad prompt holds up nobody
        pipe = idle.get()
        try:
            with guidance.attach(pipe):
                options = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
                image = pipe(prompt, guidance_scale=3.0, **options).images[0]
        finally:
            idle.put(pipe)
        image.save(file := io.BytesIO(), "PNG")
        return Response(file.getvalue(), media_type="image/png")

    @app.post("/score")
    def score(text: str, image: bytes = Body(media_type="application/octet-stream")) -> dict[str, float]:
        return {"score": cg.clip_score(scorer, image, text).item()}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, default=2, help="images that are drawn at once")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at, on this machine alone")
    args = parser.parse_args()
    uvicorn.run(make_app(pipelines=args.pipelines), port=args.port)
