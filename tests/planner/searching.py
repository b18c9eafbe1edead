"""One of several processes that search together: python searching.py STORAGE TRIALS PAUSE [HOST].

Prints how many plans it measured, then the plan and the number of trials as JSON.
"""

import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import FakeMeasurer, World

from tpcal.planner import others
from tpcal.planner.search import search


class Slow(FakeMeasurer):
    """Takes a while over every batch, as a model would, and says which plan it has begun."""

    pause_s = 0.0

    def losses(self, cuts):
        print("measuring", json.dumps([[c.layer, c.keep, c.selector] for c in cuts]), flush=True)
        for batch in super().losses(cuts):
            time.sleep(self.pause_s)
            yield batch


def main(storage: str, n_trials: str, pause_s: str, host: str = "") -> None:
    if host:  # as on another machine
        socket.gethostname = lambda: host
    others.SILENCE_S = 1.0
    world = World(8, 36, 3, 24, 0)
    measurer = Slow(world)
    measurer.pause_s = float(pause_s)
    found = search(
        world.profile(), 0.3, measurer=measurer, n_trials=int(n_trials), storage=storage
    )
    done = [t for t in found.trials if t.outcome != "repeat"]
    cuts = [[c.layer, c.keep, c.selector] for c in found.plan.cuts]
    print(json.dumps({"plans": measurer.n_plans, "trials": len(done), "cuts": cuts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
