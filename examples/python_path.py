"""Calibrate, search, evaluate and certify from Python: a small run on the built-in model.

Run it in an empty folder. It takes seconds, so its plan is no good: real runs take the defaults.
"""

from __future__ import annotations

from pathlib import Path

import tpcal


def main() -> None:
    """Runs the four steps and prints what each found."""
    stored = tpcal.make_profile(
        data=tpcal.DataChoice(samples=14),
        settings=tpcal.CalibrationSettings(
            selectors=("grid",), keeps=(0.5, 0.25, 0.0), layers=(0, 2, 4)
        ),
    )
    profile = stored.profile
    print(f"Profile: {len(profile.sample_group)} samples, {len(profile.probes)} probes")

    search = tpcal.PlanningSettings(n_trials=4)
    plan = tpcal.find_plan(stored, 0.5, settings=search).save("plan.yaml")
    print(f"Plan: {len(plan.cuts)} cuts, layer-average keep {plan.cost.layer_average_keep:.2f}")

    unseen = tpcal.DataChoice(samples=28)
    found = tpcal.evaluate("plan.yaml", data=unseen).comparison
    with_plan = found.plans[0].evaluation.overall
    print(f"Accuracy: {with_plan.unpruned.value:.2f} unpruned, {with_plan.plan.value:.2f} pruned")

    try:
        proven = tpcal.certify("plan.yaml", tpcal.Promise(0.5, 0.9), data=unseen)
        print(f"Certificate: at most {proven.certificate.bound:.0%} of the answers change")
        proven.save("plan.yaml")
    except tpcal.TpcalError as refusal:
        print(f"Not certified: {refusal}")
    assert Path("plan.yaml").exists()


if __name__ == "__main__":
    main()
