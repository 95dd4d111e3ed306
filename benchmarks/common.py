"""Interleaved timing: each contender runs once per round, so a slow moment affects all."""

import os
import subprocess
import sys
import time
from statistics import median

import numpy as np

# seconds above which a run may have used threads, and until these have gone to sleep
THREADED, PAUSE = 0.003, 0.05


def rounds(contenders, n_rounds):
    """Seconds of each contender in each round, after a warm-up round that is not counted.

    Each round begins with a different contender.
    """
    seconds = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(n_rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            run = contenders[name]
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            if number:
                seconds[name].append(taken)
            if taken > THREADED:
                # idle BLAS threads keep a core busy for a while, which would slow down the next run
                time.sleep(PAUSE)
    return seconds


def n_rounds(contenders, budget=3.0, most=101, least=5):
    """As many rounds as fit into `budget` seconds, within limits."""
    start = time.perf_counter()
    for run in contenders.values():
        run()
    return max(least, min(most, int(budget / (time.perf_counter() - start))))


class Table:
    """A printed table of times, ratios and their spread, with geometric means at the end."""

    def __init__(self, title):
        self.ratios = {}
        print(f"\n{title}\n")
        print("| case | peer | peer ms | ours ms | ratio | spread of the ratio |")
        print("|---|---|---|---|---|---|")

    def add(self, case, seconds, group=""):
        """One line per peer; `seconds` holds "ours" and the peers."""
        ours = seconds["ours"]
        for name, times in seconds.items():
            if name == "ours":
                continue
            each = np.array(times) / np.array(ours)
            ratio = median(times) / median(ours)
            self.ratios.setdefault((name, group), []).append(ratio)
            low, high = np.quantile(each, [0.1, 0.9])
            print(
                f"| {case} | {name} | {1e3 * median(times):.3f} | {1e3 * median(ours):.3f} "
                f"| {ratio:.2f} | {low:.2f} to {high:.2f} |",
                flush=True,
            )

    def summary(self):
        """Geometric mean and smallest ratio of each peer."""
        print()
        for (name, group), ratios in self.ratios.items():
            mean = float(np.exp(np.mean(np.log(ratios))))
            label = f"{name} ({group})" if group else name
            print(f"{label}: geometric mean {mean:.2f}, smallest {min(ratios):.2f}")


def with_threads(main, counts=(1, 2)):
    """Run `main(n_threads)` in a fresh process for each number of threads."""
    if len(sys.argv) > 1:
        main(int(sys.argv[1]))
        return
    for count in counts:
        env = {**os.environ, "OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count)}
        subprocess.run([sys.executable, sys.argv[0], str(count)], env=env, check=True)
