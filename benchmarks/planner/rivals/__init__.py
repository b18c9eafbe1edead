"""Other planners: published ways to find a schedule, over tpcal's own selectors and executor.

Each file has one planner with the interface `Planner`. All get the same samples and the same
measurements of plans, and the work of all runs of the model is counted. Each says where it differs
from what was published.
"""
