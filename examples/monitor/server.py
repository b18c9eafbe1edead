"""A FastAPI server that answers questions about images with a plan, watched by a monitor.

    pip install 'tpcal[monitor]' fastapi uvicorn
    python examples/monitor/server.py

The plan is plan.yaml beside this file, or the one that is named as an argument. It holds the sizes
of the inputs that it was calibrated on, and the monitor compares the requests with them.

POST /answer takes {"images": [base64, ...], "question": "..."}; GET /metrics is for Prometheus.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Response
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from transformers import AutoModelForImageTextToText, AutoProcessor

import tpcal
from tpcal.calibrate.embedded import FOLDER
from tpcal.monitor.prometheus import export_metrics

PLAN = Path(__file__).with_name("plan.yaml")
SETTINGS = tpcal.MonitorSettings(share=0.2, limit=0.2, switch_off=True)


class Question(BaseModel):
    """A question about images, each a base64 text of an image file."""

    images: list[str]
    question: str


def make_app(plan: Path | str = PLAN, settings: tpcal.MonitorSettings = SETTINGS) -> FastAPI:
    """The server, on the built-in model."""
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER)
    handle = tpcal.apply(model, tpcal.load_plan(plan))
    monitor = tpcal.Monitor(model, processor, handle, settings)
    registry = CollectorRegistry()
    export_metrics(monitor, registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        monitor.close()  # the thread that answers again must end before the process does
        handle.remove()

    app = FastAPI(lifespan=lifespan)

    @app.post("/answer")
    def answer(asked: Question) -> dict[str, str]:  # not async, so it runs in a thread of a pool
        images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in asked.images]
        prompt = f"USER: {'<image> ' * len(images)}{asked.question} ASSISTANT:"
        inputs = processor(images, prompt, return_tensors="pt")
        ids = monitor.generate(inputs, max_new_tokens=8, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return {"answer": processor.decode(new, skip_special_tokens=True).strip()}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1] if sys.argv[1:] else PLAN), host="127.0.0.1", port=8000)
