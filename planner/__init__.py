"""DECIDE: searches the schedule of cuts that loses least at a given cost."""
