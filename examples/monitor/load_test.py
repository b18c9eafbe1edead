"""A bounded load test of server.py: 60 requests with an image each, then 30 with two.

python examples/monitor/load_test.py http://127.0.0.1:8000
"""

from __future__ import annotations

import base64
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

from tpcal.calibrate.embedded import EmbeddedSample, samples


def ask(url: str, sample: EmbeddedSample, n_images: int) -> str:
    """The server's answer to one question."""
    file = io.BytesIO()
    sample.image.save(file, "PNG")
    images = [base64.b64encode(file.getvalue()).decode()] * n_images
    body = json.dumps({"images": images, "question": sample.question}).encode()
    request = Request(f"{url}/answer", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as response:
        return json.load(response)["answer"]


def load(url: str, n: int, n_images: int) -> str:
    """Asks n questions, four at a time, and returns the metrics afterwards."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda sample: ask(url, sample, n_images), samples("eval", n)))
    with urlopen(f"{url}/metrics", timeout=60) as response:
        return response.read().decode()


def is_off(metrics: str) -> bool:
    """Whether the metrics say that the plan is switched off."""
    return "\ntpcal_off 1.0" in metrics


if __name__ == "__main__":
    print("off after 60 requests with one image:", is_off(load(sys.argv[1], 60, 1)))
    print("off after 30 requests with two images:", is_off(load(sys.argv[1], 30, 2)))
