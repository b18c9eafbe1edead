"""Loading of a vision-language model and its processor, by alias, Hub id, folder or `embedded`."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tpcal.calibrate.inputs.container_memory import room_of_container
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.model_files import ModelFiles, find_model, quiet
from tpcal.plans import families, hub, temporary_files
from tpcal.plans.cost import DecoderShape
from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.extras import require
from tpcal.plans.plan_records import ModelIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

PROCESSOR_PACKAGES = ("torchvision", "num2words", "timm", "sentencepiece", "tiktoken", "av")
"""Optional packages that processors need, by the name for both installation and import."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run, with the facts that calibration and planning need."""

    model: PreTrainedModel
    processor: ProcessorMixin
    identity: ModelIdentity
    shape: DecoderShape
    name: str
    """The name as the user gave it, without the revision."""


def load(
    source: str | ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offload: bool = False,
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> Loaded:
    """The model and its processor, on its device, in evaluation mode.

    Args:
        source: ``embedded``, an alias of `ALIASES`, a Hub id (``org/name`` or
            ``org/name@revision``) or a local folder; or what `find_model` found by such a name.
        device: ``auto`` (CUDA if available; processes started together take the GPUs in turn),
            ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: the checkpoint's own on an
            accelerator, float32 on a CPU, where half precision is slower and coarser.
        offload: Whether to keep weights that do not fit on the device in the CPU's memory, and the
            rest on disk. They are copied to the device in every pass, which is slow and does not
            change the results.
        trust_remote_code: Whether to run Python code that comes with the model.
        attention: ``sdpa`` or ``eager``; None leaves the choice to transformers.

    Raises:
        UsageError: There is no such model, its files cannot be read, it takes no images, it has
            no processor or no supported family, or the device is not available.
        RunFailed: The model does not fit into memory.

    Example:
        >>> from tpcal.calibrate.inputs.models import load
        >>> load("embedded", device="cpu").shape.n_layers  # doctest: +SKIP
    """
    place = find_model(source) if isinstance(source, str) else source
    where = find_device(device)
    keywords = place.arguments(trust_remote_code)
    with quiet():
        config = _configuration(place, keywords)
        precision = _dtype(dtype, where, config)
        processor = _processor(place, keywords)
        how = _offloaded(where) if offload else {}
        how |= {"attn_implementation": attention} if attention else {}
        model = _model(place, config, precision, None if offload else where, keywords | how)
    shown = place.name
    identity = families.identity(model, shown, place.revision)
    return Loaded(model, processor, identity, families.decoder_shape(model), shown)


def find_device(name: str) -> torch.device:
    """The device of a name, as `load` takes it.

    Raises:
        UsageError: There is no such device, or it is not available.
    """
    if name == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device must be cpu, cuda, cuda:N or auto; got {name}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name} needs CUDA, and torch sees none here. Use cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device must be below cuda:{torch.cuda.device_count()}; got {name}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps is not available here. Use cpu or auto.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be cpu, cuda, cuda:N or auto; got {name}.")
    return device


def _own_gpu() -> torch.device:
    """The GPU of this process: processes of a host take them in turn, others torch's current."""
    place = os.environ.get("LOCAL_RANK")
    if place is None:
        return torch.device("cuda")
    return torch.device("cuda", int(place) % torch.cuda.device_count())


def _dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    if name == "auto":
        own = getattr(config, "dtype", None)
        use_own = device.type != "cpu" and isinstance(own, torch.dtype)
        return own if use_own else torch.float32  # type: ignore[return-value]
    if name not in DTYPES:
        raise UsageError(f"dtype must be one of auto, {', '.join(DTYPES)}; got {name}.")
    return DTYPES[name]


def _configuration(place: ModelFiles, keywords: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    with _explained(place, "config.json"):
        config = AutoConfig.from_pretrained(place.source, **keywords)
    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        kind = (getattr(config, "architectures", None) or [config.model_type])[0]
        raise UsageError(
            f"{place.name} must be a vision-language model; got {kind}, which does not answer "
            "questions about images."
        )
    return config


def _processor(place: ModelFiles, keywords: Mapping[str, Any]) -> Any:
    from transformers import AutoProcessor

    with _explained(place, "processor_config.json"), _named_packages(place):
        processor = AutoProcessor.from_pretrained(place.source, **keywords)
    if getattr(processor, "image_processor", None) is None or not hasattr(processor, "tokenizer"):
        raise UsageError(
            f"{place.name} must come with a processor for images and text; got "
            f"{type(processor).__name__}. Add processor_config.json or preprocessor_config.json."
        )
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _model(
    place: ModelFiles,
    config: Any,
    dtype: torch.dtype,
    device: torch.device | None,
    keywords: Mapping[str, Any],
) -> Any:
    from transformers import AutoModelForImageTextToText

    advice = "Try --dtype bfloat16, --offload, another device, or a smaller model."
    with memory_guard(f"Loading {place.name}", advice), _explained(place, "model.safetensors"):
        with torch.device("meta"):  # an unsupported family is refused before weights are fetched
            families.find(AutoModelForImageTextToText.from_config(config))
        model = AutoModelForImageTextToText.from_pretrained(
            place.source, config=config, dtype=dtype, **keywords
        )
        compat.check_offloaded(model)
        placed = model if device is None else model.to(device)
        return placed.eval().requires_grad_(False)


def _offloaded(device: torch.device) -> dict[str, Any]:
    """Keywords of ``from_pretrained`` that fill the device, then the CPU's memory, then the disk.

    A fifth of each memory stays free for computation. Other GPUs stay empty, because probes repeat
    layers with the states that the device holds.

    Raises:
        UsageError: The device is neither a CPU nor a CUDA device.
    """
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"offload must go with a CPU or a CUDA device; got {device}.")
    require("plan", "accelerate")
    own = {"cpu", device.index or 0} if device.type == "cuda" else {"cpu"}
    room = {place: int(0.8 * n) for place, n in free_memory().items() if place in own}
    folder = str(temporary_files.new_folder(Path(tempfile.gettempdir())))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": "sequential", "max_memory": room, "offload_folder": folder}


def free_memory() -> dict[int | str, int]:
    """Free bytes of each GPU, by number, and of the host, as ``cpu``."""
    from accelerate.utils import get_max_memory

    # Where MPS shares the host's memory, accelerate lists it under that name only.
    free = {"cpu" if place == "mps" else place: n for place, n in get_max_memory().items()}
    return free | {"cpu": min(free["cpu"], room_of_container())}


def device_of(model: Any) -> torch.device:
    """The device on which the model computes and expects its inputs; weights may be elsewhere."""
    hook = getattr(model, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    return model.device if where is None else torch.device(where)


@contextmanager
def _named_packages(place: ModelFiles) -> Iterator[None]:
    """Turns a processor's error about a missing package into a `UsageError` that names it."""
    try:
        yield
    except (ImportError, ValueError, AttributeError) as error:
        package = _missing_package(str(error))
        if package is None:
            raise
        raise UsageError(
            f"The processor of {place.name} needs {package}, which is not installed. Way out: "
            f"pip install {package}."
        ) from error


def _missing_package(reason: str) -> str | None:
    """The missing package that an error of transformers is about; None if it is about another."""
    if any(words in reason for words in compat.LACKS_TORCHVISION):
        reason = "torchvision"
    named = (
        name for name in PROCESSOR_PACKAGES if re.search(rf"\b{name}\b", reason, re.IGNORECASE)
    )
    return next((name for name in named if find_spec(name) is None), None)


@contextmanager
def _explained(place: ModelFiles, file: str) -> Iterator[None]:
    """Turns errors of transformers and the Hub into a `UsageError` that says how to go on."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "custom code" in reason:
            raise UsageError(
                f"{place.source} needs Python code of its own. Name the repository of the same "
                "model for transformers, which often ends in -hf, or add --trust-remote-code if "
                "you trust the code."
            ) from error
        if place.is_folder:
            shown = f"{reason[:200]}…" if len(reason) > 200 else reason
            raise UsageError(f"{place.source}: {file} cannot be used. {shown}") from error
        offline = not hub.reachable()
        cause = (
            "the Hugging Face Hub cannot be reached and the file is not in the local cache"
            if offline
            else _short(reason)
        )
        revision = f"@{place.revision}" if place.revision else ""
        raise UsageError(
            f"{file} of {place.source}{revision} is needed, but {cause}. Way out: download the "
            f"repository where the Hub can be reached (hf download {place.source} --local-dir "
            "DIR) and pass the folder: --model DIR."
        ) from error


def _short(reason: str) -> str:
    first = reason.split(". ")[0].rstrip(".")
    return first if len(first) <= 200 else f"{first[:200]}…"
