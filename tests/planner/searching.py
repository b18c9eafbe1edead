"""One of several processes that search together: python searching.py STORAGE TRIALS PAUSE.

Prints every plan it begins to measure, and in the end one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import optuna
from searches import search

from benchmarks.generated_world import FakeMeasurer, World
from tpcal.planner.search.storage import open_storage


class Slow(FakeMeasurer):
    """Takes a while over every batch, as a model would, and says which plan it has begun."""

    pause_s = 0.0

    def losses(self, cuts):
        print("measuring", json.dumps([[c.layer, c.keep, c.selector] for c in cuts]), flush=True)
        for batch in super().losses(cuts):
            time.sleep(self.pause_s)
            yield batch


def main(storage: str, n_trials: str, pause_s: str) -> None:
    world = World(8, 36, 3, 24, 0)
    measurer = Slow(world)
    measurer.pause_s = float(pause_s)
    found = search(
        world.profile(), 0.3, measurer=measurer, n_trials=int(n_trials), storage=storage
    )
    study = optuna.load_study(study_name=found.study, storage=open_storage(storage))
    facts = {
        "plans": measurer.n_plans,
        "trials": sum(trial.outcome != "repeat" for trial in found.trials),
        "cuts": [[cut.layer, cut.keep, cut.selector] for cut in found.plan.cuts],
        "all": [[trial.state.name, trial.user_attrs.get("seed_place")] for trial in study.trials],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
