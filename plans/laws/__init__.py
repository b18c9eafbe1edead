"""The laws every family must keep, as code: try them on a new family or on a loaded model."""

from tpcal.plans.laws.case import Case, collate

__all__ = ["Case", "collate"]
