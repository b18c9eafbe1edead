"""What is done with a broken file: it is refused in one line, or it is as good as any other.

Every function returns whether the file was accepted. What is not a TpcalError comes through, and
a file that is accepted against the rules is an AssertionError.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch  # noqa: F401  # takes longer to import than any file may
import yaml
from click.testing import CliRunner
from pages import small_profile
from searches import answer, search

from tpcal.calibrate import profile as profiles
from tpcal.calibrate.bench.bench_results import BenchResults
from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.cli import cli
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search import front as fronts
from tpcal.planner.search.storage import open_storage
from tpcal.plans.errors import TpcalError
from tpcal.plans.plan_file import digest, dump_plan, load_plan, parse_plan
from tpcal.plans.plan_records import Cut, Plan
from tpcal.report.bench_section import benches
from tpcal.report.evaluation_section import evaluations

HERE = Path(__file__).parent
SEEDS, CORPUS = HERE / "seeds", HERE / "corpus"
SCHEMA = json.loads((HERE.parents[1] / "plans" / "plan.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LONGEST_S = 20.0
"""Of the processor. A file that takes longer hangs; one that waits is ended by pytest-timeout."""
MAX_CHARS = 2_000
"""Of one line of an error."""


class Hang(BaseException):
    """Something took longer than `LONGEST_S`; no code that is tried may catch it."""


@contextmanager
def watched(seconds: float = LONGEST_S) -> Iterator[None]:
    """Raises `Hang` in what takes longer."""

    def stop(number: int, frame: Any) -> None:
        raise Hang(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def refused(read: Callable[[], Any]) -> bool:
    """Whether a deliberate error of few words refuses it."""
    try:
        read()
    except TpcalError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(0 < len(line) < MAX_CHARS for line in lines), lines
        return True
    return False


def plan(text: str) -> bool:
    """Parsed; where that succeeds, valid by the JSON Schema, and the same when read again."""
    found: list[Plan] = []
    with watched():
        if refused(lambda: found.append(parse_plan(text, "broken.yaml"))):
            return False
        (read,) = found
        written = dump_plan(read)
        again = parse_plan(written)
        assert again == read
        assert digest(again) == digest(read)
        assert dump_plan(again) == written
        read.counts(576)
        read.schedule(576, 1_000)
        problems = [e for e in VALIDATOR.iter_errors(yaml.safe_load(text)) if not _of_params(e)]
        assert not problems, problems[0].message
    return True


def _of_params(error: jsonschema.ValidationError) -> bool:
    """Selectors judge their parameters when a plan is applied, which needs torch."""
    return "params" in error.absolute_path


def plan_file(path: Path) -> bool:
    """Read from a file."""
    with watched():
        return not refused(lambda: load_plan(path))


def command(args: Sequence[str]) -> bool:
    """A command line that ends well, or with an exit code of ours and lines that begin like it."""
    with watched():
        result = CliRunner().invoke(cli, args, prog_name="tpcal")
    if result.exit_code == 0:
        return True
    assert result.exit_code in (2, 3, 4, 5), result.output
    assert all(line.startswith("tpcal: error: ") for line in result.stderr.splitlines())
    return False


def write_profile(folder: Path, data: Any, arrays: dict[str, Any] | None = None) -> None:
    """A profile with any content and digests that fit it."""
    from safetensors.numpy import save

    packed = profiles._pack(small_profile())
    if arrays is not None:
        packed = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        if isinstance(data, dict):
            data = {**data, "arrays": profiles._sha256(packed)}
    (folder / profiles.ARRAYS).write_bytes(packed)
    if isinstance(data, dict):
        try:
            data = {
                **data,
                "digest": profiles._digest({k: data[k] for k in data if k != "digest"}),
            }
        except (TypeError, ValueError):  # no digest of this is possible
            data = {**data, "digest": "sha256:0"}
    text = yaml.dump(data, Dumper=Unaliased, sort_keys=False)
    (folder / profiles.PROFILE).write_text(text, encoding="utf-8", errors="surrogatepass")


class Unaliased(yaml.SafeDumper):
    """Writes a value that stands in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def profile(folder: Path) -> bool:
    """Read; where that succeeds, planned from."""
    from tpcal.calibrate.drop_all_depth import blind_spots, safe_depths
    from tpcal.terminal import picture
    from tpcal.views.profile_view import profile_view

    found: list[profiles.Profile] = []
    with watched():
        if refused(lambda: found.append(profiles.load(folder))):
            return False
        (read,) = found
        safe_depths(read)
        blind_spots(read)
        view = profile_view(read, title="broken", measure="kl", group=None, threshold=0.01)
        picture(view, title="broken")
        return not refused(lambda: _plan_from(read))


def _plan_from(read: profiles.Profile) -> None:
    made = search(read, 0.4).plan
    assert parse_plan(dump_plan(made)) == made
    fronts.front(Predictor(read), open_storage(None))


class Formula:
    """Measures plans of the small profile by a formula."""

    def __init__(self) -> None:
        base = small_profile()
        self.groups, self.sample_group = base.groups, base.sample_group
        self.fingerprint = base.fingerprint

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Any, Any, Any]]:
        lost = sum((1 - cut.keep) / (1 + cut.layer) for cut in cuts)
        every = np.arange(len(self.sample_group))
        yield every, lost * (1.0 + self.sample_group), np.minimum(0.1 * lost + 0 * every, 1.0)


def journal(path: Path) -> bool:
    """Read for the front, asked for an answer, and searched on."""
    base = small_profile()

    def use() -> None:
        fronts.front(Predictor(base), open_storage(path))
        answer(base, Budget(0.4), path)
        search(base, 0.4, measurer=Formula(), n_trials=5, storage=path)

    with watched():
        return not refused(use)


def evaluation(path: Path) -> bool:
    """Read and drawn."""
    with watched():
        return not refused(lambda: evaluations(EvaluationResults.load(path)))


def bench(path: Path) -> bool:
    """Read and drawn."""
    with watched():
        return not refused(lambda: benches(BenchResults.load(path)))


def rows(path: Path) -> bool:
    """Every sample of a data set is read."""
    with watched():
        return not refused(lambda: list(load_samples(str(path), n=8)))


def small_data(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the small profile's files hold: plain data and arrays."""
    from safetensors.numpy import load_file

    profiles.save(small_profile(), folder)
    data = yaml.safe_load((folder / profiles.PROFILE).read_text(encoding="utf-8"))
    return data, dict(load_file(folder / profiles.ARRAYS))
