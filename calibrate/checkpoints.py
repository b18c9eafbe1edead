"""Results kept batch by batch during a calibration, so that an interruption costs one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tpcal.calibrate.profile import SETTINGS
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.yaml_files import write_atomic

Arrays = Mapping[str, NDArray[Any]]
PARTS = "parts"


class Parts:
    """The finished batches of one round of a calibration, one file each, in ``folder/parts``.

    Args:
        folder: Folder of the profile that the calibration makes.
        settings: Everything the results depend on; a folder with other settings is refused.
        widths: Number of columns of every array, by name; each row belongs to a sample.
        n_samples: Number of samples in all.
        number: Number of the round, from 0.

    Raises:
        UsageError: The folder holds results made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        widths: Mapping[str, int],
        n_samples: int,
        number: int = 0,
    ) -> None:
        self._folder = folder / PARTS / f"round-{number}"
        self._widths = dict(widths)
        self._n = n_samples
        self._claim(folder, settings)

    def _claim(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / SETTINGS
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageError(
                f"{folder} holds a calibration made with other settings ({path}). Delete the "
                "folder or choose another one to write to."
            )
        write_atomic(path, text)

    def add(self, samples: Sequence[int], arrays: Arrays) -> None:
        """Writes the results of some samples to a file.

        Args:
            samples: [b] numbers of the samples.
            arrays: [b, width] of every array, by name; kept as float32.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        data = {name: np.ascontiguousarray(arrays[name], np.float32) for name in self._widths}
        name = f"{numbers.min():07d}-{numbers.max():07d}.safetensors"
        write_atomic(self._folder / name, save({**data, "samples": numbers}))

    def undone(self) -> list[int]:
        """Numbers of the samples that are not measured yet, rising."""
        return [int(number) for number in np.flatnonzero(~self.read()[1])]

    def whole(self) -> dict[str, NDArray[Any]]:
        """Arrays [n, width] of all samples.

        Raises:
            RunFailed: Samples are missing, for example because processes write to different
                folders.
        """
        found, done = self.read()
        if not done.all():
            raise RunFailed(
                f"{self._folder} must hold the results of all {self._n} samples; got "
                f"{int(done.sum())}. Name a folder that all processes and hosts share with --out, "
                "then run the same command again."
            )
        return found

    def read(self) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """Arrays [n, width], NaN for samples that are not done, and [n] bool, which are done.

        A file that is damaged is deleted, and its samples count as not done.

        Raises:
            RunFailed: A file cannot be read.
        """
        # Files name the samples they hold, so a run may be continued with another batch size.
        found = {
            name: np.full((self._n, width), np.nan, np.float32)
            for name, width in self._widths.items()
        }
        done = np.zeros(self._n, dtype=bool)
        for path in sorted(self._folder.glob("*.safetensors")):
            part = self._read_part(path)
            if part is None:
                path.unlink(missing_ok=True)
                continue
            done[part["samples"]] = True
            for name, array in found.items():
                array[part["samples"]] = part[name]
        return found, done

    def _read_part(self, path: Path) -> Arrays | None:
        try:
            part = load(path.read_bytes())
        except (SafetensorError, FileNotFoundError):  # the calibration may have ended meanwhile
            return None
        except OSError as error:
            raise RunFailed(
                f"{path} cannot be read: {error.strerror}. Nothing is lost; run the same command "
                "again."
            ) from None
        samples = part.get("samples")
        if (
            samples is None
            or samples.ndim != 1
            or not ((samples >= 0) & (samples < self._n)).all()
        ):
            return None
        shapes = {name: (len(samples), width) for name, width in self._widths.items()}
        good = all(name in part and part[name].shape == shape for name, shape in shapes.items())
        return part if good else None


def found_once(folder: Path, name: str, find: Callable[[], Any]) -> Any:
    """Plain data that ``find`` computes once in a calibration; it is kept beside the parts."""
    path = folder / PARTS / f"{name}.json"
    if not path.exists():
        write_atomic(path, json.dumps(find()))
    return json.loads(path.read_text(encoding="utf-8"))


def discard(folder: Path) -> None:
    """Removes the parts, after the profile made of them is written."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
