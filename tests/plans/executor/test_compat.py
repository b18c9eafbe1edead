"""Releases of transformers: what is warned of, and what is refused instead of run wrongly."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import DynamicCache, GenerationMixin

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat, gather
from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.families import families

pytestmark = pytest.mark.versions


def test_an_untried_release_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(transformers, "__version__", "5.99.0.dev0")
    compat.warn_untried()
    compat.warn_untried()
    assert len(caplog.records) == 1
    assert "tpcal check --deep" in caplog.text.replace("\n", " ")
    monkeypatch.setattr(transformers, "__version__", "5.10.4")
    compat.warn_untried()
    assert len(caplog.records) == 1


def test_random_weights_ask_for_a_release_that_takes_encoded_images(monkeypatch):
    monkeypatch.delattr(GenerationMixin, "_supports_mm_encoder_outputs", raising=False)
    with pytest.raises(UsageError, match=r"must run with transformers 5\.20 or newer"):
        compat.require_encoded_images()


def test_processors_without_options_of_the_tokenizer_ask_for_a_release_that_has_them():
    def old(text=None, images=None, padding=False):
        raise AssertionError

    compat.require_tokenizer_options(lambda text=None, **kwargs: None)
    with pytest.raises(UsageError, match=r"pip install 'transformers>=5\.15'"):
        compat.require_tokenizer_options(old)


def test_weights_that_nothing_loads_are_refused():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="must have room for some of its weights"):
        compat.check_offloaded(model)
    model.hf_device_map = {"": "disk"}
    compat.check_offloaded(model)


class ThinkerForConditionalGeneration(torch.nn.Module):
    """As Qwen's Omni thinkers were before 5.13."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(2, 2)

    def get_decoder(self):
        return self


def test_a_thinker_that_names_no_decoder_has_one():
    thinker = ThinkerForConditionalGeneration()
    assert compat.decoder_of(thinker) is thinker.model


def test_the_install_line_admits_what_was_tried_and_nothing_else():
    wanted = Requirement(compat.INSTALL.split("'")[1]).specifier
    for version in ("5.9.9", "5.10.0", "5.15.1", "5.24.7", "5.25.0", "6.0"):
        assert wanted.contains(version) == compat.is_tried(version)


def test_families_know_which_releases_have_their_classes():
    installed = Version(transformers.__version__)
    exported = set(dir(transformers))  # imports no model
    for family in families().values():
        assert set(family.since) <= set(family.architectures)
        for kind in family.architectures:
            since = Version(family.since.get(kind, "5.10"))
            assert (kind in exported) == (installed >= since), kind


@pytest.mark.parametrize("name", compat.CACHE_NAMES)
def test_a_cache_is_found_under_the_name_of_any_release(name):
    cache = DynamicCache()
    assert compat.given_cache({name: cache}) is cache
    assert compat.given_cache({name: None}) is None


def test_a_cache_of_an_unknown_name_or_place_is_refused():
    with pytest.raises(UsageError, match="got it as memory"):
        compat.given_cache({"memory": DynamicCache()})
    with pytest.raises(UsageError, match="got it as a positional argument"):
        compat.given_cache({}, (DynamicCache(),))
    with pytest.raises(UsageError, match="got none, though the decoder has one"):
        compat.given_cache({}, expected=True)


def test_outputs_and_passes_of_an_unknown_form_are_refused():
    compat.check_pass((torch.ones(1),), 4, 4)
    with pytest.raises(UsageError, match="must return its last states"):
        compat.check_pass({"states": torch.ones(1)}, 4, 4)
    with pytest.raises(UsageError, match="it called 3"):
        compat.check_pass((torch.ones(1),), 3, 4)


def test_tables_of_an_axis_each_are_gathered_by_token():
    table = torch.arange(36.0).view(3, 1, 6, 2)
    left = Survivors(torch.tensor([[0, 1, 3, 5]]), None, (2,))
    (made,) = gather.Gatherer().values((table,), left, 6)
    assert torch.equal(made, table[:, :, [0, 1, 3, 5]])
