"""Asks a server of serve.sh about images: python client.py [IMAGE QUESTION]

Without arguments it asks eight of the built-in model's questions at once.
"""

import base64
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from openai import OpenAI
from PIL import Image

from tpcal.calibrate.embedded import samples

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")


def ask(image: Image.Image, question: str) -> str:
    """The server's answer."""
    file = BytesIO()
    image.convert("RGB").save(file, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": question},
    ]
    answer = client.chat.completions.create(
        model="pruned",
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0,
    )
    return (answer.choices[0].message.content or "").strip()


if len(sys.argv) > 2:
    print(ask(Image.open(sys.argv[1]), sys.argv[2]))
else:
    asked = samples("eval", 8)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: ask(one.image, one.question), asked)
    for one, answer in zip(asked, answers, strict=True):
        print(f"{one.question} {answer} (right: {one.answer})")
