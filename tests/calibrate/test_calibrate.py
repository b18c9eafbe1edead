from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrations import calibrate
from children import Child

from tpcal.calibrate import probe, probe_grid, profile
from tpcal.calibrate.calibrate import calibrated
from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import RowSettings, Samples, load_samples
from tpcal.calibrate.measure import Measurer
from tpcal.calibrate.probing_settings import ProbingSettings
from tpcal.calibrate.profile import MASSES, MEASURES, Probe
from tpcal.calibrate.tape_store import Store
from tpcal.planner.problem import Problem
from tpcal.planner.search.finished_plan import finished_plan
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import MERGES, SCOPES, Cut, Plan

GRID: dict[str, Any] = {
    "selectors": ["attention", "grid", "random"],
    "keeps": [0.5, 0.25, 0],
    "batch_size": 2,
}
FILES = (profile.PROFILE, profile.ARRAYS)


@pytest.fixture(scope="module")
def made(
    loaded: Loaded, scenes: Samples, tmp_path_factory: pytest.TempPathFactory
) -> tuple[profile.Profile, Path]:
    """The profile of an undisturbed run, and its folder."""
    out = tmp_path_factory.mktemp("out")
    return calibrate(loaded, scenes, out, **GRID), profile.newest(out)


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_a_profile_has_a_figure_for_everything(made: tuple[profile.Profile, Path]) -> None:
    found, _ = made
    assert found.n_tokens == 16
    assert found.n_text > 5
    assert found.input_sizes is not None
    assert (found.input_sizes.n_visual, found.input_sizes.n_images) == ({16: 6}, {1: 6})
    assert sum(n * times for n, times in found.input_sizes.n_text.items()) / 6 == pytest.approx(
        found.n_text, abs=0.5
    )
    assert len(found.probes) == 4 * 2 * 3 - 2 + 4  # attention cannot cut at layer 0
    for name in MEASURES:
        assert getattr(found, name).shape == (6, len(found.probes))
    for name in MASSES:
        array = getattr(found, name)
        assert array.shape == (6, 4)
        assert (array >= 0).all()
        assert (array <= 1).all()
    assert (found.kl >= 0).all()
    assert found.kl.max() > 0
    assert (found.local[:, [p.keep == 0 for p in found.probes]] > 0).all()
    assert (found.visual_to_text == 0).all()  # causal, images first
    assert len(found.layer_ms) > 3
    assert {"every plan", *GRID["selectors"]} < set(found.executor_ms)
    assert found.provenance["data"]["split"] == "calibration"


def test_a_probe_is_what_the_executor_does(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path]
) -> None:
    found, _ = made
    at = next(
        i for i, p in enumerate(found.probes) if (p.layer, p.keep, p.selector) == (2, 0.5, "grid")
    )
    sample = Sample("x", scenes[0].images, scenes[0].question, "")
    prompt = encode(loaded.processor, [sample], loaded.model)
    with torch.inference_mode():
        full = loaded.model(**prompt.inputs).logits[0, -1].log_softmax(-1)
        with apply(loaded.model, Plan(cuts=(Cut(2, 0.5, "grid"),))):
            pruned = loaded.model(**prompt.inputs).logits[0, -1].log_softmax(-1)
    expected = float((full.exp() * (full - pruned)).sum())
    batch = probe.record(loaded, Samples.of([sample]), [0])
    alone = probe.measure(loaded, batch, found.probes)["kl"][0, at]
    assert alone == pytest.approx(expected, abs=1e-6)


def test_the_same_run_again_is_done_at_once(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path]
) -> None:
    found, folder = made
    reports: list[tuple[int, int, str]] = []
    again = calibrate(
        loaded, scenes, folder.parent, **GRID, progress=lambda *report: reports.append(report)
    )
    assert again.digest == found.digest
    np.testing.assert_allclose(again.layer_ms, found.layer_ms, atol=1e-5)
    assert not reports


def test_a_finished_profile_is_found_in_a_folder_for_reading_only(
    loaded: Loaded,
    scenes: Samples,
    made: tuple[profile.Profile, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "utime", refuse)
    folder = made[1]
    assert calibrated(loaded, scenes, folder.parent, ProbingSettings(**GRID)) == folder


def test_stopping_after_any_batch_changes_nothing(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    def stop_at(n: int) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            if done == n:
                raise KeyboardInterrupt

        return progress

    for n in (0, 2, 4, 6):
        with pytest.raises(KeyboardInterrupt):
            calibrate(loaded, scenes, tmp_path, **GRID, progress=stop_at(n))
        with pytest.raises(UsageError, match="unfinished"):
            profile.newest(tmp_path)
    calibrate(loaded, scenes, tmp_path, **GRID)
    assert same_bytes(profile.newest(tmp_path), made[1])
    assert not (profile.newest(tmp_path) / "parts").exists()


SCRIPT = """
import sys
from tpcal.calibrate import calibrate, timing
from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.probing_settings import ProbingSettings
timing.N_REPEATS = 2
loaded = models.load(sys.argv[1], device="cpu")
settings = ProbingSettings(selectors=["attention", "grid", "random"], keeps=[0.5, 0.25, 0], batch_size=2)
calibrate.calibrate(loaded, load_samples(n=6), sys.argv[2], settings=settings,
                progress=lambda *report: print(*report, flush=True))
"""


def test_killing_it_and_starting_again_gives_the_same_bytes(
    model_folder: Path, made: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    with Child(SCRIPT, model_folder, tmp_path) as child:
        for line in child.lines:
            if line.startswith("2 6"):
                time.sleep(0.02)  # into the next batch
                child.send(signal.SIGKILL)
                break
        assert child.wait() == -signal.SIGKILL
    with Child(SCRIPT, model_folder, tmp_path) as child:
        assert not child.lines.read().startswith("0 6"), "it began anew"
        assert child.wait() == 0
    assert same_bytes(profile.newest(tmp_path), made[1])


def test_a_damaged_part_is_measured_again(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(loaded, scenes, tmp_path, **GRID, progress=stop)
    part = sorted(tmp_path.glob("*/parts/round-0/*"))[0]
    part.write_bytes(part.read_bytes()[:100])
    calibrate(loaded, scenes, tmp_path, **GRID)
    assert same_bytes(profile.newest(tmp_path), made[1])


def test_with_one_image_a_prompt_the_scope_changes_nothing_but_its_name(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    found, folder = made
    of_prompts = calibrate(loaded, scenes, tmp_path, **GRID, scope="prompt")
    assert (found.scope, of_prompts.scope) == ("image", "prompt")
    assert (folder / profile.ARRAYS).read_bytes() == (
        profile.newest(tmp_path) / profile.ARRAYS
    ).read_bytes()
    problems = [Problem.of(each, 0.5) for each in (found, of_prompts)]
    cuts = (Cut(2, 0.5, "grid"),)
    plan, old = (finished_plan(problem, cuts, {}) for problem in problems)
    assert (plan.scope, old.scope) == ("image", "prompt")
    alike = {"scope": "prompt", "provenance": {}}
    assert replace(plan, **alike).counts(9) == replace(old, **alike).counts(9)
    assert (plan.cuts, plan.loss) == (old.cuts, old.loss)
    assert found.input_sizes is not None
    assert plan.provenance["input_sizes"] == found.input_sizes.to_data()
    earlier = finished_plan(Problem.of(replace(found, input_sizes=None), 0.5), cuts, {})
    assert "input_sizes" not in earlier.provenance


def test_several_images_are_measured_in_the_scope_that_plans_will_have(
    loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    images = tuple(sample.images[0] for sample in scenes)
    rows = [Sample(f"{i}", images[i : i + 3], "Which?", "left") for i in range(2)]
    samples, cuts = Samples.of(rows), [Cut(1, 0.3, "diversity")]
    kept = {}
    for scope in SCOPES:
        grid: dict[str, Any] = {"selectors": ["diversity"], "keeps": [0.3], "layers": [1]}
        found = calibrate(loaded, samples, tmp_path, **grid, scope=scope)
        measurer = Measurer(loaded, samples, like=Plan(scope=scope))
        ((_, kl, _),) = measurer.losses(cuts)
        np.testing.assert_allclose(found.kl[:, 0], kl, rtol=1e-4, atol=1e-6)
        assert found.input_sizes is not None
        assert (found.input_sizes.n_visual, found.input_sizes.n_images) == ({48: 2}, {3: 2})
        kept[scope] = kl
    assert (np.abs(kept["image"] - kept["prompt"]) > 1e-5).all()


def test_an_unknown_scope_is_refused(loaded: Loaded, scenes: Samples, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scope must be one of image, prompt; got 'row'"):
        calibrate(loaded, scenes, tmp_path, scope="row")


def test_merging_is_measured_and_what_plans_of_the_profile_do(
    loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    grid: dict[str, Any] = {"selectors": ["grid"], "keeps": [0.3], "layers": [1]}
    cuts, losses = (Cut(1, 0.3, "grid"), Cut(2, 0.1, "grid")), []
    for merge in (None, *MERGES):
        found = calibrate(loaded, scenes, tmp_path, **grid, merge=merge)
        assert found.merge == profile.load(profile.newest(tmp_path)).merge == merge
        ((numbers, kl, _),) = Measurer(loaded, scenes, like=found.like).losses(cuts[:1])
        np.testing.assert_allclose(found.kl[numbers, 0], kl, rtol=1e-4, atol=1e-6)
        plan = finished_plan(Problem.of(found, 0.5), cuts, {})
        assert plan.merge == merge
        ((numbers, kl, _),) = Measurer(loaded, scenes, like=plan).losses(cuts)
        first = _applied_loss(loaded, scenes[int(numbers[0])], plan)
        assert kl[0] == pytest.approx(first, abs=1e-5)
        losses.append(kl)
    assert len(list(tmp_path.iterdir())) == 3  # one folder each
    for one, other in combinations(losses, 2):
        assert (np.abs(one - other) > 1e-5).all()


def _applied_loss(loaded: Loaded, sample: Sample, plan: Plan) -> float:
    """Nats per answer token under `apply`, without a tape."""
    encoded = encode(loaded.processor, [sample], loaded.model)
    positions = encoded.positions[encoded.valid]
    with torch.inference_mode():
        full = loaded.model(**encoded.inputs).logits[0, positions].log_softmax(-1)
        with apply(loaded.model, plan):
            pruned = loaded.model(**encoded.inputs).logits[0, positions].log_softmax(-1)
    return float((full.exp() * (full - pruned)).sum(-1).mean())


def test_an_unknown_merge_is_refused(loaded: Loaded, scenes: Samples, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="merge must be one of mean, proportional; got 'sum'"):
        calibrate(loaded, scenes, tmp_path, merge="sum")


def test_other_settings_get_another_folder(
    loaded: Loaded, made: tuple[profile.Profile, Path]
) -> None:
    _, folder = made
    wish = {**GRID, "keeps": [0.5]}
    calibrate(loaded, load_samples(n=2), folder.parent, **wish)
    assert len(list(folder.parent.iterdir())) == 2
    assert profile.newest(folder.parent) != folder


def test_another_processor_configuration_or_metric_gets_another_folder(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_probe = ProbingSettings(selectors=("grid",), keeps=(0.5,), layers=(1,))

    def folder(metric: str | None = None) -> Path:
        samples = load_samples(n=2, rows=RowSettings(metric=metric))
        return calibrated(loaded, samples, tmp_path, one_probe)

    folders = [folder(), folder(), folder("contains")]
    monkeypatch.setattr(loaded.model.config.text_config, "rms_norm_eps", 0.5)
    folders.append(folder())
    template = f"{loaded.processor.chat_template}{{# another #}}"
    monkeypatch.setattr(loaded.processor, "chat_template", template)
    folders.append(folder())
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4


def test_a_folder_of_other_settings_is_refused(
    loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(loaded, scenes, tmp_path, **GRID, progress=_interrupt)
    settings = next(tmp_path.glob("*/settings.json"))
    settings.write_text(settings.read_text().replace("0.93", "0.5"))
    with pytest.raises(UsageError, match="made with other settings"):
        calibrate(loaded, scenes, tmp_path, **GRID)


def _interrupt(done: int, total: int, what: str) -> None:
    raise KeyboardInterrupt


def test_running_out_of_memory_keeps_what_is_done(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    def full(done: int, total: int, what: str) -> None:
        if done == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunFailed, match=r"out of memory.*is kept.*smaller --batch-size"):
        calibrate(loaded, scenes, tmp_path, **GRID, progress=full)
    started: list[int] = []
    smaller = {**GRID, "batch_size": 1}
    found = calibrate(
        loaded,
        scenes,
        tmp_path,
        **smaller,
        progress=lambda done, total, what: started.append(done),
    )
    assert started[0] == 4
    np.testing.assert_allclose(found.kl, made[0].kl, atol=1e-5)


def two_of_the_rest(found: profile.Profile, rest: Sequence[Probe]) -> list[Probe]:
    """Two probes each of two rounds, out of the grid's order."""
    n_coarse = len(probe_grid.coarse([*found.probes, *rest]))
    return list(rest[3:5])[::-1] if len(found.probes) < n_coarse + 4 else []


@pytest.fixture(scope="module")
def refined(
    loaded: Loaded, scenes: Samples, tmp_path_factory: pytest.TempPathFactory
) -> tuple[profile.Profile, Path]:
    """The profile of an undisturbed run that refines twice, and its folder."""
    out = tmp_path_factory.mktemp("refined")
    made = calibrate(loaded, scenes, out, **GRID, refine=two_of_the_rest)
    return made, profile.newest(out)


def test_refined_probes_are_found_as_in_the_whole_grid(
    made: tuple[profile.Profile, Path], refined: tuple[profile.Profile, Path]
) -> None:
    whole, some = made[0], refined[0]
    assert len(some.probes) == len(probe_grid.coarse(whole.probes)) + 4
    places = [whole.probes.index(p) for p in some.probes]
    assert places == sorted(places)
    for name in MEASURES:
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[:, places])
    for name in MASSES:
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    assert some.provenance["refined"] is True
    assert "refined" not in whole.provenance
    assert refined[1].name != made[1].name


@pytest.mark.parametrize(("room", "n_recordings"), [(None, 1), (0, 3)])
def test_batches_are_recorded_once_where_memory_holds_them(
    loaded: Loaded,
    scenes: Samples,
    refined: tuple[profile.Profile, Path],
    tmp_path: Path,
    room: int | None,
    n_recordings: int,
) -> None:
    taken: list[str] = []

    def read(sample: Sample) -> Sample:
        taken.append(sample.id)
        return sample

    counted = Samples(scenes.name, scenes.description, list(scenes), read, scenes.recipe)
    assert counted.fingerprint  # which reads every sample once
    taken.clear()
    store = Store(room)
    calibrate(loaded, counted, tmp_path, **GRID, refine=two_of_the_rest, store=store)
    assert taken.count(scenes[5].id) == n_recordings  # sample 0 is timed besides
    assert same_bytes(profile.newest(tmp_path), refined[1])


def test_stopping_anywhere_while_refining_changes_nothing(
    loaded: Loaded, scenes: Samples, refined: tuple[profile.Profile, Path], tmp_path: Path
) -> None:
    reports: list[tuple[int, int, str]] = []
    for n in range(40):

        def stop(*report: Any, stop_after: int = n) -> None:
            reports.append(report)
            if len(reports) > stop_after:
                raise KeyboardInterrupt

        reports.clear()
        try:
            calibrate(loaded, scenes, tmp_path, **GRID, refine=two_of_the_rest, progress=stop)
            break
        except KeyboardInterrupt:
            continue
    assert n > 5
    assert same_bytes(profile.newest(tmp_path), refined[1])
    assert not (profile.newest(tmp_path) / "parts").exists()


def test_progress_names_the_rounds(loaded: Loaded, scenes: Samples, tmp_path: Path) -> None:
    reports: list[tuple[int, int, str]] = []
    calibrate(
        loaded,
        scenes,
        tmp_path,
        **GRID,
        refine=two_of_the_rest,
        progress=lambda *report: reports.append(report),
    )
    names = list(dict.fromkeys(what for _, _, what in reports))
    assert [name.partition(", to ")[0] for name in names] == [
        "Calibrating",
        "Choosing probes",
        "Refining, round 1",
        "Refining, round 2",
        "Timing layers",
    ]
    found = [re.fullmatch(r"Refining, .*, to (\d+)% of the full grid", name) for name in names]
    first, second = (int(match[1]) for match in found if match)
    assert 0 < first < second <= 100
    assert [done for done, _, what in reports if what.startswith("Refining, round 1")] == [
        0,
        2,
        4,
        6,
    ]


def test_samples_without_images_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    samples = Samples.of([Sample("x7", (), "Is there a circle?", "yes")])
    with pytest.raises(UsageError, match="must have images; got none in sample x7"):
        calibrate(loaded, samples, tmp_path, **GRID)


def test_numbers_that_are_not_finite_are_told(
    model_folder: Path, scenes: Samples, tmp_path: Path
) -> None:
    broken = models.load(str(model_folder), device="cpu")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(RunFailed, match="finite"):
        calibrate(broken, scenes, tmp_path, **GRID)


def test_the_results_do_not_depend_on_the_company(
    loaded: Loaded, scenes: Samples, made: tuple[profile.Profile, Path]
) -> None:
    found, _ = made
    alone = probe.measure(loaded, probe.record(loaded, scenes, [3]), found.probes)
    np.testing.assert_allclose(alone["kl"][0], found.kl[3], atol=1e-5)
    np.testing.assert_allclose(alone["local"][0], found.local[3], atol=1e-5)
