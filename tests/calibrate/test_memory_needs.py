"""What a run will need, and how it keeps to a limit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tpcal.calibrate import memory_needs, probe
from tpcal.calibrate.inputs import container_memory
from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.models import Loaded, free_memory
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.measure import Measurer
from tpcal.calibrate.memory_needs import Need
from tpcal.calibrate.tape_store import Store
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Cut
from tpcal.workflow.answer_batches import answers_at_once

WORK = 1e6
NEED = Need(work=WORK, kept=3e6, beyond="on disk")


def weights(loaded: Loaded) -> int:
    return sum(p.nbytes for p in loaded.model.parameters())


def test_the_longest_prompt_is_that_of_a_batch(loaded: Loaded, scenes: Samples) -> None:
    found = memory_needs.longest(loaded, scenes)
    encoded = encode(loaded.processor, list(scenes), loaded.model)
    assert found.n_tokens == encoded.inputs["input_ids"].shape[1]
    assert found.n_answer == encoded.positions.shape[1]
    assert found.n_visual == 16


def test_what_is_kept_is_what_was_said(loaded: Loaded, scenes: Samples) -> None:
    prompt, n = memory_needs.longest(loaded, scenes), len(scenes)
    store = Store()
    list(Measurer(loaded, scenes, batch_size=n, store=store).losses([Cut(1, 0.5, "grid")]))
    assert store.host_bytes == pytest.approx(
        n * memory_needs.of_plans(loaded, prompt).kept, rel=0.3
    )
    store = Store()
    store.keep(probe.record(loaded, scenes, range(n)))
    assert store.host_bytes == pytest.approx(
        n * memory_needs.of_probes(loaded, prompt).kept, rel=0.3
    )


@pytest.mark.parametrize(("n_fit", "size"), [(3.5, 3), (100, 16)])
def test_batches_keep_to_the_limit(loaded: Loaded, n_fit: float, size: int) -> None:
    limit = int(weights(loaded) + 2 * n_fit * WORK)  # half is for what is kept
    assert memory_needs.arranged(loaded, NEED, 10, 16, limit).batch_size == size


def test_what_does_not_fit_is_on_disk_and_told(loaded: Loaded) -> None:
    run = memory_needs.arranged(loaded, NEED, 10, 16, int(weights(loaded) + 2e7))
    assert re.fullmatch(
        r"Memory: about .* GB on cpu in batches of 10, .* GB of it for the weights; "
        r"0\.01 GB of the host's for 10 samples; 0\.02 GB on disk\.",
        run.said,
    )
    assert run.store.has_room(torch.zeros(2_400_000))
    assert not run.store.has_room(torch.zeros(2_600_000))


def test_a_limit_too_small_for_one_sample_is_refused(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=r"--memory must be at least about 0.00\d+ GB .* got"):
        memory_needs.arranged(loaded, NEED, 10, 16, weights(loaded))


def test_without_a_limit_the_batch_is_that_asked_for(loaded: Loaded) -> None:
    assert memory_needs.arranged(loaded, NEED, 10, 16, None).batch_size == 16


def test_memory_that_mps_shares_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {"mps": 3e9})
    assert free_memory()["cpu"] == 3e9
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 1e9, "cpu": 2e9})
    assert free_memory()["cpu"] == 2e9


def test_the_limit_of_a_container_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 1e9, "cpu": 64e9})
    monkeypatch.setattr(container_memory, "ROOT", tmp_path)
    monkeypatch.setattr(container_memory, "OWN", tmp_path / "own")
    assert free_memory()["cpu"] == 64e9  # no control groups
    (tmp_path / "own").write_text("0::/jobs/7\n")
    (tmp_path / "jobs/7").mkdir(parents=True)
    assert free_memory()["cpu"] == 64e9
    for group, limit in (("jobs", "10000"), ("jobs/7", "max")):
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text("7000\n")
        (tmp_path / group / "memory.stat").write_text("anon 6000\ninactive_file 500\n")
    assert free_memory() == {0: 1e9, "cpu": 3500}


def test_a_prompt_of_every_group_is_tried(
    loaded: Loaded, scenes: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(scenes[0], id=str(i), group=f"set {i % 15}") for i in range(135)]
    lengths = {"set 3": 900}

    def measured(loaded: Loaded, sample: Sample) -> tuple[int, int, int]:
        return lengths.get(str(sample.group), 10), 4, 2

    monkeypatch.setattr(memory_needs, "_measured", measured)
    assert memory_needs.longest(loaded, Samples.of(rows)).n_tokens == 900


def test_the_largest_images_of_every_group_are_tried(
    loaded: Loaded, scenes: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(scenes[0], id=str(i), group=f"set {i % 2}") for i in range(101)]
    sizes = {37: (90, 40), 38: (20, 30), 71: (3000, 1000)}
    rows = [
        replace(row, images=(Image.new("RGB", sizes.get(i, (9, 9))),))
        for i, row in enumerate(rows)
    ]
    drawn = Samples.of(rows)
    assert drawn.part(37, 39).n_pixels == (3600, 600) == drawn.unanswered().part(37, 39).n_pixels
    tried: list[str] = []

    def measured(loaded: Loaded, sample: Sample) -> tuple[int, int, int]:
        tried.append(sample.id)
        return sample.images[0].width, 4, 2

    monkeypatch.setattr(memory_needs, "_measured", measured)
    assert memory_needs.longest(loaded, drawn).n_tokens == 3000
    assert {"38", "71"} <= set(tried)
    assert len(tried) <= memory_needs.N_TRIED + 2


def test_answers_keep_to_the_limit_with_their_cache(
    loaded: Loaded, scenes: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = memory_needs.longest(loaded, scenes)
    longer = memory_needs.of_answers(loaded, prompt, 108).work
    need = memory_needs.of_answers(loaded, prompt, 8).work
    inputs = prompt_inputs(loaded.processor, [scenes[0]], loaded.model)
    with torch.inference_mode():
        cache = loaded.model(**inputs, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert longer - need == pytest.approx(100 * held / inputs["input_ids"].shape[1])
    limit = int(weights(loaded) + 2 * 3.5 * need)
    caplog.set_level("INFO", "tpcal.workflow")  # the command line shows these records
    assert answers_at_once(loaded, scenes, 32, None, 8) == 32
    assert not caplog.messages
    assert answers_at_once(loaded, scenes, 32, limit, 8) == 3
    assert re.fullmatch(r"Memory: about .* on cpu in batches of 3, .*", *caplog.messages)
