"""How the test of a law ends if the law is broken, or does not apply to the model."""

from __future__ import annotations


class Broken(Exception):
    """The law does not hold; the message is one clause with the measured number."""


class Inapplicable(Exception):
    """The law does not apply to this model; the message is the reason."""
