from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tpcal.calibrate import profile
from tpcal.calibrate.profile import ARRAYS, PROFILE, TIMING, Probe, Profile
from tpcal.plans.cost import DecoderShape
from tpcal.plans.errors import UsageError
from tpcal.plans.input_sizes import InputSizes, RequestSize
from tpcal.plans.plan_records import MERGES, ModelIdentity, Plan


@pytest.fixture
def made() -> Profile:
    """Three samples of two groups, two probes, four layers."""
    rng = np.random.default_rng(0)

    def numbers(columns: int) -> np.ndarray:
        return rng.random((3, columns)).astype(np.float32)

    return Profile(
        model=ModelIdentity(n_layers=4, name="tiny", family="llava", fingerprint="sha256:1"),
        shape=DecoderShape(4, 32, 48, 2, 2, 16, 100, 4),
        n_tokens=16,
        n_text=9,
        groups=("count", "sign"),
        sample_group=np.array([0, 1, 0]),
        probes=(Probe(0, 0.5, "random", {"seed": 3}), Probe(2, 0.0)),
        local=numbers(2),
        kl=numbers(2),
        flips=numbers(2),
        turns=numbers(4),
        text_to_visual=numbers(4),
        visual_to_text=numbers(4),
        layer_ms=((9, 0.5), (25, 1.25)),
        executor_ms={"every plan": 0.125, "grid": 0.25},
        provenance={"seed": 0, "data": {"name": "tiny"}},
    )


def test_a_profile_of_the_first_schema_tells_answers_and_finds_its_files(
    made: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vlm").mkdir()
    (tmp_path / "rows.jsonl").touch()
    shares = np.array([[0.0, 0.5], [1.0, 0.0], [0.25, 0.0]], np.float32)
    drawn = {"data": "rows.jsonl", "samples": 3}
    old = replace(made, flips=shares, provenance={"samples": drawn, "data": {**drawn, "n": 3}})
    old = replace(old, model=replace(made.model, name="./vlm"))
    monkeypatch.setattr(profile, "SCHEMA", 1)
    profile.save(old, tmp_path / "out" / "p")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    read = profile.load(tmp_path / "out" / "p")
    assert read.flips.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert read.model.name == "../../vlm"
    assert read.provenance["samples"]["data"] == "../../rows.jsonl"
    assert read.provenance["data"]["data"] == "../../rows.jsonl"


def test_what_is_saved_comes_back(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    back = profile.load(tmp_path)
    for name in (
        "model",
        "shape",
        "n_tokens",
        "n_text",
        "groups",
        "probes",
        "layer_ms",
        "executor_ms",
        "provenance",
    ):
        assert getattr(back, name) == getattr(made, name)
    for name in ("local", "kl", "flips", "turns", "sample_group"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert back.digest == made.digest


def test_a_profile_without_a_scope_is_of_whole_prompts(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    assert "scope" not in (tmp_path / PROFILE).read_text()
    assert profile.load(tmp_path).scope == "prompt"
    by_image = replace(made, scope="image")
    profile.save(by_image, tmp_path)
    assert profile.load(tmp_path).scope == "image"
    assert by_image.digest != made.digest


def test_a_profile_says_what_became_of_tokens_that_left(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    assert "merge" not in (tmp_path / PROFILE).read_text()
    assert profile.load(tmp_path).merge is None
    digests = {made.digest}
    for merge in MERGES:
        merging = replace(made, merge=merge)
        profile.save(merging, tmp_path)
        again = profile.load(tmp_path)
        assert again.merge == merge
        assert again.like == Plan(scope=made.scope, merge=merge)
        digests.add(again.digest)
    assert len(digests) == 3
    profile.save(replace(made, merge="sum"), tmp_path)
    with pytest.raises(UsageError, match="merge must be one of mean, proportional; got 'sum'"):
        profile.load(tmp_path)


def test_sizes_of_inputs_come_back_and_older_profiles_have_none(
    made: Profile, tmp_path: Path
) -> None:
    sizes = InputSizes.of(RequestSize(16, 1, n) for n in (8, 9, 10))
    new = replace(made, input_sizes=sizes)
    profile.save(new, tmp_path / "new")
    assert profile.load(tmp_path / "new").input_sizes == sizes
    assert profile.load(tmp_path / "new").digest == new.digest != made.digest
    profile.save(made, tmp_path / "old")
    assert "input_sizes" not in (tmp_path / "old" / PROFILE).read_text()
    assert profile.load(tmp_path / "old").input_sizes is None
    damaged = InputSizes({16: 3}, {1: 3}, {8: 2})
    profile.save(replace(made, input_sizes=damaged), tmp_path / "bad")
    with pytest.raises(UsageError, match="input_sizes must count the same prompts"):
        profile.load(tmp_path / "bad")


def test_the_same_profile_gives_the_same_bytes(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path / "a")
    profile.save(replace(made, layer_ms=(), executor_ms={}), tmp_path / "b")
    for name in (PROFILE, ARRAYS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_digest_sees_figures_but_not_times(made: Profile) -> None:
    assert replace(made, layer_ms=(), executor_ms={}).digest == made.digest
    assert replace(made, kl=made.kl + 1).digest != made.digest
    assert replace(made, n_text=10).digest != made.digest


def test_widths_of_latent_attention_come_back_and_others_say_nothing_of_them(
    made: Profile, tmp_path: Path
) -> None:
    profile.save(made, tmp_path / "plain")
    assert "rank" not in (tmp_path / "plain/profile.yaml").read_text()
    shape = replace(made.shape, kv_rank=16, q_rank=24, shared_key=8, value_dim=12)
    profile.save(replace(made, shape=shape), tmp_path / "latent")
    assert profile.load(tmp_path / "latent").shape == shape
    assert profile.load(tmp_path / "latent").digest != made.digest


def test_means_by_group(made: Profile) -> None:
    np.testing.assert_allclose(made.mean("kl"), made.kl.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        made.mean("flips", "count"), made.flips[[0, 2]].mean(axis=0), rtol=1e-6
    )
    with pytest.raises(
        UsageError, match="No group is called 'x' in this profile. It has: count, sign"
    ):
        made.mean("kl", "x")
    with pytest.raises(UsageError, match="measure must be one of kl, local, flips"):
        made.mean("loss")


def test_times_may_be_missing(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    (tmp_path / TIMING).unlink()
    assert profile.load(tmp_path).layer_ms == ()


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (PROFILE, b"", "got an empty file"),
        (PROFILE, b"\xff\xfe", "UTF-8"),
        (PROFILE, b"[1, 2]", "is damaged: .*Delete the folder and calibrate again"),
        (PROFILE, b"schema: 9\narrays: x\n", "schema must be 1 .*got 9"),
        (PROFILE, b"a: &a [1]\nb: *a\n", "aliases are not allowed"),
        (PROFILE, b"{", "must be plain YAML"),
        (ARRAYS, b"", "is damaged: arrays.safetensors is not the file"),
        (ARRAYS, b"nonsense", "is damaged: arrays.safetensors is not the file"),
        (TIMING, b"layer_ms: 3\n", "timing.yaml is damaged. Delete it"),
        (TIMING, b"layer_ms: [{n_tokens: 1, ms: .nan}]\n", "timing.yaml is damaged"),
        (TIMING, b"layer_ms: []\nexecutor_ms: 3\n", "timing.yaml is damaged"),
        (TIMING, b"layer_ms: []\nexecutor_ms: {grid: -1}\n", "timing.yaml is damaged"),
    ],
)
def test_damage_is_one_clear_line(
    made: Profile, tmp_path: Path, file: str, data: bytes, message: str
) -> None:
    profile.save(made, tmp_path)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        profile.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_figure_is_noticed(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    text = (tmp_path / PROFILE).read_text()
    (tmp_path / PROFILE).write_text(text.replace("n_text: 9", "n_text: 8"))
    with pytest.raises(UsageError, match="was changed after it was written"):
        profile.load(tmp_path)


def test_missing_arrays_are_named(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path)
    (tmp_path / ARRAYS).unlink()
    with pytest.raises(UsageError, match=r"No array file of the profile at .*arrays\.safetensors"):
        profile.load(tmp_path)


def test_arrays_that_do_not_fit_are_refused(made: Profile, tmp_path: Path) -> None:
    for broken in (replace(made, kl=made.kl[:, :1]), replace(made, turns=made.turns * np.nan)):
        profile.save(broken, tmp_path)
        with pytest.raises(UsageError, match="is damaged: .* finite numbers"):
            profile.load(tmp_path)


def test_no_profile_says_how_to_make_one(tmp_path: Path) -> None:
    for act in (profile.load, profile.newest):
        with pytest.raises(UsageError, match="Make one with: tpcal calibrate"):
            act(tmp_path / "none")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / profile.SETTINGS).touch()
    for act, where in ((profile.load, tmp_path / "x"), (profile.newest, tmp_path)):
        with pytest.raises(UsageError, match="unfinished.*it continues"):
            act(where)


def test_the_newest_profile_is_found(made: Profile, tmp_path: Path) -> None:
    profile.save(made, tmp_path / "a")
    profile.save(made, tmp_path / "b")
    os.utime(tmp_path / "b" / PROFILE, (1, 1))
    assert profile.newest(tmp_path) == tmp_path / "a"
    assert profile.newest(tmp_path / "b") == tmp_path / "b"
    assert profile.load(tmp_path / "a" / PROFILE).digest == made.digest
