"""Programs for those who work on tpcal; run from a checkout, not part of the package."""
