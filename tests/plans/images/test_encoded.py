"""What features carry of the images they were made from."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from types import SimpleNamespace

import torch
from torch import nn

from tpcal.plans.images import encoded


class Encoder(nn.Module):
    def get_image_features(self, pixel_values, image_sizes=None, batch_num_images=None):
        return SimpleNamespace(pooler_output=tuple(pixel_values.clone()))

    def get_video_features(self, pixel_values_videos, grid_thw=None):
        return SimpleNamespace(pooler_output=pixel_values_videos)  # a stack: all alike


def test_features_tell_what_they_were_encoded_with_in_any_order():
    base, undo = Encoder(), ExitStack()
    encoded.remember(base, undo)
    sizes = torch.tensor([[4, 5], [6, 7]])
    image = base.get_image_features(torch.zeros(2, 3), image_sizes=sizes, batch_num_images=[2])
    one, two = image.pooler_output
    image.pooler_output = [one, two, one, two]  # as generate repeats them for beams
    found = encoded.arguments({"mm_encoder_outputs": {"image": image, "video": None}})
    assert set(found) == {"image_sizes"}  # pixels are not kept, nor what is not by image
    assert found["image_sizes"].tolist() == [[4, 5], [6, 7], [4, 5], [6, 7]]
    undo.close()
    assert not vars(base).keys() & {"get_image_features", "get_video_features"}


def test_features_from_elsewhere_tell_nothing():
    base = Encoder()
    image = base.get_image_features(torch.zeros(1, 3), image_sizes=torch.tensor([[4, 5]]))
    assert encoded.arguments({"mm_encoder_outputs": {"image": image}}) == {}
    assert encoded.arguments({"mm_encoder_outputs": None}) == {}
    assert encoded.arguments({}) == {}


def test_generate_still_reads_the_signature():
    base = Encoder()
    wanted = inspect.signature(base.get_image_features)
    with ExitStack() as undo:
        encoded.remember(base, undo)
        assert inspect.signature(base.get_image_features) == wanted
