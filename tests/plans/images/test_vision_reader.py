"""What is read of vision towers, and which visual tokens it belongs to."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from models import N_IMAGE, batch, prompt, tiny_llava
from reference import class_attention
from releases import require_encoded_images, require_joint_beams
from tiny import case

from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.images import vision_reader
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")

PLAN = Plan((Cut(0, 0.5, "vispruner"), Cut(3, 0.25, "visionzip")))
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe")
PROMPTS = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_llava(request.param)


def test_the_class_tokens_attention_and_the_mean_keys_are_read(model):
    inputs = batch(PROMPTS)
    with apply(model, PLAN) as handle:
        seen = []
        read = handle._executor._vision.of
        handle._executor._vision.of = lambda *args: seen.append(read(*args)) or seen[-1]
        model(**inputs)
    wanted = class_attention(model, inputs["pixel_values"])
    assert seen[0].shape == (3, 2 * N_IMAGE, wanted.shape[-1])
    torch.testing.assert_close(seen[0][0, :N_IMAGE], wanted[0])
    torch.testing.assert_close(seen[0][1].view(2, N_IMAGE, -1), wanted[1:])
    assert (seen[0][2] == 0).all()


def test_without_a_class_token_it_is_the_attention_received(monkeypatch):
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 7, 4, generator=g) for _ in range(2))
    weights = (query @ key.mT / 2).softmax(-1)  # [n, H, queries, keys]
    wanted = torch.cat([weights.mean((1, 2))[..., None], key.mean(1)], -1)
    torch.testing.assert_close(vision_reader.read(query, key, None, 0.5, False), wanted)
    torch.testing.assert_close(wanted[..., 0].sum(1), torch.ones(2))
    monkeypatch.setattr(vision_reader, "CHUNK", 2 * 3 * 7 * 2)  # two queries at a time
    torch.testing.assert_close(vision_reader.read(query, key, None, 0.5, False), wanted)
    wanted[..., 0] = weights[:, :, 0].mean(1)
    torch.testing.assert_close(vision_reader.read(query, key, None, 0.5, True), wanted)


def test_a_tower_may_hide_tokens_from_each_other():
    query = key = torch.eye(3)[None, None]
    sees = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()[None, None]
    e = torch.tensor(1.0).exp()
    for mask in (sees, torch.zeros(1, 1, 3, 3).masked_fill(~sees, -torch.inf)):
        scores = vision_reader.read(query, key, mask, 1.0, False)[0, :, 0]
        torch.testing.assert_close(scores, torch.full((3,), 1 / 3))
        scores = vision_reader.read(query, key, mask, 1.0, True)[0, :, 0]
        torch.testing.assert_close(scores, torch.stack([e / (e + 1), 1 / (e + 1), 0 * e]))


def test_values_by_row_follow_beams():
    values = torch.arange(6.0)[:, None]
    assert vision_reader.by_row(values, [2, 0, 4]).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    beams = vision_reader.by_row(values, [2, 2, 0, 0, 4, 4]).flatten().tolist()
    assert beams == [0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    for counts in ([2, 4, 2, 4], [5], [3, 0, 4], [2, 2, 4]):
        with pytest.raises(UsageError, match="images must be encoded while the plan is applied"):
            vision_reader.by_row(values, counts)


@pytest.mark.parametrize("name", ["llava", "llava_next", "vipllava"])
def test_llavas_values_go_to_the_tokens_that_their_patches_become(name):
    model = case(name, "sdpa").model
    base, config = model.base_model, model.config
    layers = compat.feature_layer(config)
    layers = [layers] if isinstance(layers, int) else list(layers)
    for row in case(name, "sdpa").rows:
        inputs = {k: v for k, v in row.items() if k in ("pixel_values", "image_sizes")}
        if not inputs:
            continue
        pixels = inputs_of(base.vision_tower, partial(base.get_image_features, **inputs))[0]
        states = base.vision_tower(pixels, output_hidden_states=True).hidden_states
        values = torch.cat([states[layer] for layer in layers], dim=-1)
        values = find(model).by_visual_token(model, [values], inputs)
        features = torch.cat(list(base.get_image_features(**inputs).pooler_output))
        newline = values[:, 0] == -torch.inf
        assert (newline.any() and (values[newline, 1:] == 0).all()) or name != "llava_next"
        values[newline] = 0
        projected = base.multi_modal_projector(values[None])[0]
        torch.testing.assert_close(projected[~newline], features[~newline])
        if newline.any():
            torch.testing.assert_close(
                features[newline], base.image_newline.expand(newline.sum(), -1)
            )


@pytest.mark.parametrize("name", QWENS)
def test_qwens_values_go_to_the_block_that_their_patches_lie_in(name):
    one = case(name, "sdpa")
    base, config = one.model.base_model, one.model.config.vision_config
    n_seen, reordered = 0, False
    for row in (*one.rows, *one.videos):
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            grid = row.get(f"{kind}_grid_thw")
            if grid is None:
                continue
            encode, visual = getattr(base, f"get_{kind}_features"), base.visual
            calls = partial(encode, row[pixels], grid)
            patches = visual.patch_embed(*inputs_of(visual.patch_embed, calls))
            entered = inputs_of(visual.blocks[0], calls)[0]
            if name.startswith("qwen3"):  # adds positions in between and reorders nothing
                order = torch.arange(len(patches))
            else:
                order = torch.cdist(entered, patches).argmin(1)
                assert order.unique().numel() == len(order)
            reordered |= not torch.equal(order, torch.arange(len(order)))
            places = torch.cat(
                [block_places(*size, config.spatial_merge_size) for size in grid.tolist()]
            )
            given = {f"{kind}_grid_thw": grid}
            found = find(one.model).by_visual_token(one.model, [places[order][None]], given)
            wanted = torch.cat(
                [token_places(*size, config.spatial_merge_size) for size in grid.tolist()]
            )
            torch.testing.assert_close(found, wanted)
            n_seen += 1
    assert n_seen >= 3
    assert reordered == name.startswith("qwen2_5")  # by its windows


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_siglips_values_are_averaged_as_their_features_are(name):
    one = case(name, "sdpa")
    base, pixels = one.model.base_model, one.rows[1]["pixel_values"]
    states = base.vision_tower(pixels).last_hidden_state
    made = find(one.model).by_visual_token(one.model, [states], {})
    projector = base.multi_modal_projector
    if name == "gemma3":
        made = projector.mm_soft_emb_norm(made) @ projector.mm_input_projection_weight
    else:
        made = projector(made)
    features = base.get_image_features(pixels).pooler_output.flatten(0, 1)
    assert len(features) > len(pixels)
    torch.testing.assert_close(made, features)


def test_internvls_values_go_to_the_block_that_is_shuffled_into_a_token():
    model = case("internvl", "sdpa").model
    side = 2 * find(model).tile_side(model)
    g = torch.Generator().manual_seed(0)
    values = torch.randn(3, side, side, 4, generator=g)
    shuffled = model.base_model.pixel_shuffle(values, 0.5)  # the channels of four patches
    wanted = shuffled.unflatten(-1, (4, 4)).mean(-2).flatten(0, 2)
    patches = torch.cat([torch.full((3, 1, 4), torch.nan), values.flatten(1, 2)], dim=1)
    torch.testing.assert_close(find(model).by_visual_token(model, [patches], {}), wanted)


def inputs_of(module, call):
    """Positional arguments of the module's call."""
    seen = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args))
    call()
    hook.remove()
    return seen[0]


def block_places(steps, height, width, merge):
    """[P, 3] step, row and column of patches as the processor orders them: block after block."""
    size = (steps, height // merge, width // merge, merge, merge)
    t, i, j, k, m = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    return torch.stack([t, i * merge + k, j * merge + m], -1).flatten(0, -2).float()


def token_places(steps, height, width, merge):
    """[N, 3] step and middle of each visual token in patches, in reading order."""
    size = (steps, height // merge, width // merge)
    t, i, j = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    middle = (merge - 1) / 2
    return torch.stack([t, i * merge + middle, j * merge + middle], -1).flatten(0, -2).float()


@pytest.mark.parametrize("n_beams", [1, 3])
def test_generation_chooses_what_a_forward_chooses(model, n_beams):
    if n_beams > 1:
        require_joint_beams()
    inputs = batch(PROMPTS)
    with apply(model, PLAN) as handle:
        model(**inputs)
        wanted = [cut.kept for cut in handle.last.cuts]
        model.generate(**inputs, max_new_tokens=2, num_beams=n_beams, do_sample=False)
        beams = [tuple(row for row in kept for _ in range(n_beams)) for kept in wanted]
        assert [cut.kept for cut in handle.last.cuts] == beams


def test_features_carry_what_was_read_when_they_were_made(model):
    require_encoded_images()
    first, second = batch(PROMPTS, seed=1), batch(PROMPTS, seed=5)
    with apply(model, PLAN) as handle:
        model(**first)
        wanted = [cut.kept for cut in handle.last.cuts]
        features = model.get_image_features(first["pixel_values"])
        model(**second)
        assert [cut.kept for cut in handle.last.cuts] != wanted
        pixels = first.pop("pixel_values")
        model(**first, mm_encoder_outputs={"image": features})
        assert [cut.kept for cut in handle.last.cuts] == wanted
        model(**batch([prompt(6, seed=4)]))  # text alone changes nothing
        model(**first, pixel_values=pixels)
        assert [cut.kept for cut in handle.last.cuts] == wanted


def test_features_made_without_the_plan_are_refused(model):
    inputs = batch(PROMPTS)
    features = model.get_image_features(inputs["pixel_values"])
    with apply(model, PLAN):
        model(**inputs)
        del inputs["pixel_values"]
        with pytest.raises(UsageError, match="images must be encoded while the plan is applied"):
            model(**inputs, mm_encoder_outputs={"image": features})
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(UsageError, match="images must be encoded while the plan is applied"):
            model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


def test_a_tower_that_fails_is_read_again(model):
    inputs = batch(PROMPTS)
    with apply(model, PLAN) as handle:
        with pytest.raises(ValueError, match=r"\(16\*16\)"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][..., :16, :16]})
        model(**inputs)
        assert len(handle.last.cuts) == 2


def test_the_model_is_as_before(model):
    inputs, tower = batch(PROMPTS), model.model.vision_tower
    before, config = model(**inputs).logits, tower.config
    with apply(model, PLAN):
        assert (model(**inputs).logits - before).abs().max() > 0.1
    assert torch.equal(model(**inputs).logits, before)
    assert all(module.config is config for module in tower.modules() if hasattr(module, "config"))
    assert "get_image_features" not in vars(model.model)


def test_a_family_that_does_not_offer_its_tower_is_refused():
    model = case("pixtral", "sdpa").model
    with pytest.raises(
        FitError, match=r"cuts\[0\]\.selector: vispruner needs the vision tower's a"
    ):
        apply(model, PLAN)


def test_a_tower_with_another_kernel_is_refused(model):
    tower = model.model.vision_tower
    kernel = tower.config._attn_implementation
    tower.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(
            FitError, match="a vision tower whose attention implementation is sdpa"
        ):
            apply(model, PLAN)
    finally:
        tower.config._attn_implementation_internal = kernel


OFFERED = (
    *("llava_next", "vipllava", "gemma3", "paligemma", "internvl"),
    *QWENS,
)


@pytest.mark.parametrize("name", OFFERED)
def test_a_row_is_read_alike_alone_in_a_batch_and_in_beams(name):
    one = case(name, "sdpa")
    model, rows = one.model, [*one.rows, *one.videos]
    together = one.batch(rows)
    with apply(model, PLAN) as handle:
        model(**together)
        kept = [cut.kept for cut in handle.last.cuts]
        for b, row in enumerate(rows):
            model(**row)
            if handle.last.n_visual:
                assert [cut.kept[0] for cut in handle.last.cuts] == [cut[b] for cut in kept]
            else:
                assert kept[0][b] == ()
        require_joint_beams()
        model.generate(**together, max_new_tokens=1, num_beams=2, do_sample=False)
        beams = [tuple(row for row in cut for _ in range(2)) for cut in kept]
        assert [cut.kept for cut in handle.last.cuts] == beams
