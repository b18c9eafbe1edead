"""Writes questions about built-in scenes that no calibration has seen, for the task beside this.

python examples/lmms/make_questions.py 200
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from PIL.Image import Image as Picture

from tpcal.calibrate.inputs.samples import load_samples

FILE = Path(__file__).parent / "questions.parquet"
FEATURES = Features(
    {name: Value("string") for name in ("id", "question", "answer", "group")} | {"image": Image()}
)


def make(n: int, file: Path) -> None:
    """The first ``n`` questions of `tpcal eval`, as a table."""
    samples = load_samples(None, split="eval", n=n)
    rows = [
        {
            "id": sample.id,
            "question": sample.question,
            "answer": sample.answer,
            "group": sample.group,
            "image": {"bytes": _png(sample.images[0])},
        }
        for sample in samples
    ]
    Dataset.from_list(rows, features=FEATURES).to_parquet(file)


def _png(image: Picture) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format="png")
        return file.getvalue()


if __name__ == "__main__":
    make(int(sys.argv[1]) if len(sys.argv) > 1 else 200, FILE)
    print(f"Wrote {FILE}.")
