"""Families: the registry, the parts they find, identity and shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import transformers
from models import IMAGE, N_IMAGE, N_LAYERS, SIDE, batch, prompt, tiny_llava

import tpcal
import tpcal.plans.families as package
from tpcal.plans.errors import UsageError
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.families import decoder_shape, families, find, identity
from tpcal.plans.families.base import Family, square_grid


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def grids_of(model, n_visual):
    """The grids of prompts with so many visual tokens in a row behind one text token."""
    places = torch.arange(1 + max(n_visual) + 1)
    visual = (places > 0) & (places <= torch.tensor(n_visual)[:, None])
    return find(model).grids(model, read_prompt(visual, None), {})


def test_the_directory_listing_is_the_registry():
    listed = {p.stem for p in Path(package.__file__).parent.glob("*.py")} - {"base"}
    files = {name for name in listed if not name.startswith("_")}
    assert set(families()) == files
    served = [name for family in families().values() for name in family.architectures]
    assert len(served) == len(set(served))
    assert all(isinstance(family, Family) and family.name == n for n, family in families().items())


def test_an_unknown_architecture_is_named_with_the_families_there_are():
    with pytest.raises(UsageError, match=r"Linear has no family\. It has no decoder"):
        find(torch.nn.Linear(1, 1))


def test_a_family_finds_the_parts_of_a_model(model):
    family = find(model)
    assert family.base(model) is model.model
    assert family.decoder(model) is model.model.language_model
    assert len(family.layers(model)) == N_LAYERS
    assert family.final_norm(model) is model.model.language_model.norm
    assert family.attention(family.layers(model)[2]) is family.layers(model)[2].self_attn
    states = torch.randn(2, 3, 64)
    assert torch.equal(family.logits(model, states), model.lm_head(states))


def test_visual_tokens_are_found_by_id_and_by_embedding(model):
    ids = batch([prompt(3, 0, 4)])["input_ids"]
    family = find(model)
    assert torch.equal(family.visual_mask(model, ids, None), ids == IMAGE)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(family.visual_mask(model, None, embeds), ids == IMAGE)


def test_every_image_of_a_row_has_the_grid_of_the_tower(model):
    grids = grids_of(model, [N_IMAGE, 0, 2 * N_IMAGE])
    assert [len(row) for row in grids] == [1, 0, 2]
    grid = grids[2][1]
    assert (grid.n_rows, grid.n_cols) == (SIDE, SIDE)
    assert grid.row.tolist() == [i // SIDE for i in range(N_IMAGE)]
    assert grid.col.tolist() == [i % SIDE for i in range(N_IMAGE)]


def test_a_class_token_gets_a_column_of_its_own():
    grid = square_grid(2, 1)
    assert list(zip(grid.row.tolist(), grid.col.tolist(), strict=True)) == [
        (0, 2),
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert (grid.n_rows, grid.n_cols) == (2, 3)


def test_tokens_that_are_no_whole_images_are_refused(model):
    assert len(grids_of(model, [N_IMAGE + 1])[0]) == 1  # with a class token
    with pytest.raises(UsageError, match=r"whole images of 16 tokens.*got 19"):
        grids_of(model, [19])


def test_identity_is_of_the_structure_not_the_weights(model):
    mine = identity(model, "some/name", "main")
    assert (mine.n_layers, mine.family, mine.name) == (N_LAYERS, "llava", "some/name")
    assert mine.architecture == "LlavaForConditionalGeneration"
    assert mine.fingerprint == identity(tiny_llava(seed=1)).fingerprint
    assert mine.fingerprint != identity(tiny_llava(n_kv_heads=1)).fingerprint


@pytest.mark.parametrize("name", ["num_experts", "moe_intermediate_size"])
def test_the_structure_is_also_that_of_the_experts(name):
    model = tiny.case("qwen3_vl_moe", "sdpa").model
    text, before = model.config.get_text_config(decoder=True), identity(model).fingerprint
    value = getattr(text, name)
    setattr(text, name, 2 * value)
    try:
        assert identity(model).fingerprint != before
    finally:
        setattr(text, name, value)


def test_the_shape_of_the_decoder(model):
    shape = decoder_shape(model)
    assert (shape.n_layers, shape.hidden, shape.ffn) == (N_LAYERS, 64, 128)
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim) == (4, 2, 16)
    assert (shape.vocab, shape.dtype_bytes) == (97, 4)
    assert decoder_shape(tiny_llava(dtype=torch.bfloat16)).dtype_bytes == 2


@pytest.mark.parametrize(
    ("kind", "widths", "ffn"),
    [
        ("GptOss", {"intermediate_size": 24, "num_local_experts": 8}, 4 * 24),
        ("Mixtral", {"intermediate_size": 24, "num_local_experts": 8}, 4 * 24),
        ("Qwen3Moe", {"moe_intermediate_size": 32, "num_experts": 8}, 4 * 32),
        (
            "Qwen2Moe",
            {"moe_intermediate_size": 32, "num_experts": 8, "shared_expert_intermediate_size": 40},
            4 * 32 + 40,
        ),
        (
            "Glm4Moe",
            {"moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1},
            5 * 32,
        ),
        ("GraniteMoe", {"intermediate_size": 24, "num_local_experts": 0}, 24),
        ("Qwen3", {"intermediate_size": 24}, 24),
    ],
)
def test_the_ffn_counts_the_experts_that_a_token_visits(kind, widths, ffn):
    config = getattr(transformers, f"{kind}Config")(num_experts_per_tok=4, **widths)
    assert Family().ffn(config) == ffn


def test_the_documentation_lists_what_a_family_can_define():
    page = (Path(tpcal.__file__).parent / "docs" / "families.md").read_text()
    listed = page.split("A family can define:")[1].split("\n## ")[0]
    parts = {name for name in vars(Family) if not name.startswith("_")}
    assert {name for name in parts if f"`{name}`" not in listed} == {"architectures"}
