"""What lmms-eval is told, without lmms-eval."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from tpcal.integrations import manifest


def test_the_entry_point_leads_to_the_manifest() -> None:
    (found,) = entry_points(group="lmms_eval.models", name=manifest.MODEL)
    assert found.load() is manifest.lmms_eval


def test_the_manifest_names_a_class_that_is_a_chat_model() -> None:
    module, _, name = manifest.CLASS.rpartition(".")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    assert any(ast.unparse(line) == "is_simple = False" for line in found.body)


def test_finding_the_manifest_loads_neither_lmms_eval_nor_torch() -> None:
    code = (
        "import tpcal.integrations.manifest, sys\n"
        "print(*[m for m in ('lmms_eval', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
