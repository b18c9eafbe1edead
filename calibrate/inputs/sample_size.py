"""How many samples are drawn, and how long their answers are, if the user names no number."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_N: Mapping[str, int] = {"calibration": 126, "eval": 700}
"""Number of samples that are drawn by default, per split: 9 and 50 of each of the 14 built-in
groups. More than about 128 find no better plans (docs/planner.md, "What calibration has to cost").
"""
LEAST_OF_GROUP = 9
"""Number of samples of each group that are drawn by default, if the data has them."""
ANSWER_TOKENS = 16
"""Longest answer in tokens; data sets by name may need longer ones."""
N_CERTIFY = 700
"""Number of samples for a certificate."""
N_VERIFY = 50
"""Number of samples that a stated loss is compared on."""
