"""Names beside points cover neither points nor each other."""

from __future__ import annotations

import random
from itertools import combinations

from tpcal.report.label_places import HALF, LETTER, _sides, overlap, placed


def test_no_name_covers_another_or_a_point() -> None:
    draw = random.Random(0)
    for n in (1, 5, 40):
        spots = [(draw.uniform(0, 900), draw.uniform(0, 300)) for _ in range(n)]
        names = ["x" * draw.randint(2, 14) for _ in range(n)]
        taken = [(450.0, 150.0)]
        sides = placed(names, spots, taken, 900)
        boxes = [
            _sides(*spot, LETTER * len(name))[side]
            for spot, name, side in zip(spots, names, sides, strict=True)
            if side
        ]
        assert boxes
        assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
        points = [(x - HALF, y - HALF, x + HALF, y + HALF) for x, y in taken]
        assert not any(overlap(box, point) for box in boxes for point in points)
        assert all(box[0] >= 0 and box[2] <= 900 for box in boxes)


def test_a_lone_name_stands_to_the_right_but_at_the_edge() -> None:
    assert placed(["name"], [(10, 10)], [], 900) == ["middle right"]
    assert placed(["name"], [(890, 10)], [], 900) == ["middle left"]


def test_a_name_without_room_is_left_out() -> None:
    assert placed(["a", "b"], [(50, 50), (50, 50)], [], 900) == ["middle right", "middle left"]
    crowd = [(50.0, 50.0)] * 5
    assert placed(list("abcde"), crowd, [], 900)[-1] is None
