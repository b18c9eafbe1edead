"""Answers kept on disk as they are given: a file of JSON lines for each variant.

A run that is interrupted loses one batch, and a repeated run does not run the model at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from tpcal import __version__
from tpcal.calibrate.evaluation.generate import Answered, InMemory
from tpcal.calibrate.evaluation.variants import Variant
from tpcal.calibrate.inputs.model_digests import (
    settings_digests,
    short_digest,
    weights_digest,
)
from tpcal.calibrate.inputs.models import Loaded, device_of
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.errors import UsageError
from tpcal.plans.yaml_files import write_atomic


class AnswerFile(InMemory):
    """Answers of one variant in a file, whose first line holds everything they depend on.

    An incomplete last line, which an interrupted run leaves, is removed; its answer is generated
    again.

    Args:
        path: The file; it is created if it does not exist.
        about: Everything the answers depend on.

    Raises:
        UsageError: The file holds something else, or is damaged before its last line.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        super().__init__()
        self._path, self._header = path, _line(dict(about))
        if path.exists():
            self._read()
        else:
            write_atomic(path, self._header)

    def add(self, numbers: range, answers: Sequence[Answered]) -> None:
        """As `AnswerStore`; the file is written before this returns.

        Raises:
            UsageError: The file cannot be written.
        """
        super().add(numbers, answers)
        try:
            if not self._path.exists():  # somebody has deleted it
                write_atomic(self._path, self._header + self._lines(self))
                return
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._lines(numbers))
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}.") from None

    def _lines(self, numbers: Iterable[int]) -> str:
        return "".join(_line([i, *astuple(self[i])]) for i in numbers)

    def _read(self) -> None:
        text = self._path.read_text(encoding="utf-8", errors="replace")
        header, *lines = text.splitlines(keepends=True) or [""]
        if header != self._header:
            raise self._damaged("of other ones")
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            write_atomic(self._path, "".join([header, *lines]))
        for at, line in enumerate(lines, 2):
            try:
                # Files of earlier versions have no sizes of images.
                number, given, n_visual, n_text, counts, *sizes = json.loads(line)
                pairs = tuple((int(layer), int(n)) for layer, n in counts)
                images = tuple(int(n) for own in sizes for n in own)
                self[int(number)] = Answered(str(given), int(n_visual), int(n_text), pairs, images)
            except (ValueError, TypeError):
                raise self._damaged(f"damaged in line {at}") from None

    def _damaged(self, how: str) -> UsageError:
        return UsageError(
            f"{self._path} must hold answers that tpcal eval kept; it is {how}. Delete it, or "
            "answer anew with --fresh."
        )


class AnswerFolder:
    """The answers of one model to the same samples, with one file for each variant.

    Args:
        out: Folder that collects such folders.
        loaded: The model.
        samples: The questions.
        max_new_tokens: Longest answer, in tokens.
        fresh: Whether the file of a variant is deleted when it is asked for.
    """

    def __init__(
        self,
        out: Path,
        loaded: Loaded,
        samples: Samples,
        max_new_tokens: int,
        *,
        fresh: bool = False,
    ) -> None:
        self._out, self._loaded = out, loaded
        self._samples, self._max_new_tokens = samples, max_new_tokens
        self._fresh = fresh

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Everything the answers depend on, except the variant.

        The batch size is not part of it, because it changes answers by rounding only.
        """
        model = self._loaded.model
        return {
            "structure": self._loaded.identity.fingerprint,
            "weights": weights_digest(model),
            "dtype": str(model.dtype),
            "device": device_of(model).type,
            "attention": model.config.get_text_config(decoder=True)._attn_implementation,
            **settings_digests(self._loaded),
            "samples": self._samples.fingerprint,
            "max_new_tokens": self._max_new_tokens,
            "tpcal": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @cached_property
    def path(self) -> Path:
        """Path of the folder."""
        return self._out / f"eval-{short_digest(self.settings)}"

    def of(self, variant: Variant) -> AnswerFile:
        """The file of answers of one variant."""
        about = {"made_by": f"tpcal {__version__}", **self.settings, "way": dict(variant.key)}
        path = self.path / f"{short_digest(variant.key)}.jsonl"
        if self._fresh:
            path.unlink(missing_ok=True)
        return AnswerFile(path, about)


def _line(data: Any) -> str:
    return json.dumps(data, sort_keys=True) + "\n"
