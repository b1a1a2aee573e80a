"""Every command line ends well: random compositions of conf/ with values that fit and that do not, an epoch of each on tiny data.

A line trains with finite terms, or is refused (exit code 2) or ends with a term that is not finite (1) in at most three lines.
Exit code 1 if one does neither; each such line is printed with its answer.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from compositions import answered, composition, outcome, write_tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first line; each has the next one")
    options = parser.parse_args()
    began, ends, lines = perf_counter(), Counter[str](), set[str]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder)
        for seed in range(options.first, options.first + options.count):
            words = composition(Random(seed).choice)
            answer = answered(folder, "lowerbound-train", f"hydra.run.dir=run{seed}", *words)
            end = outcome(answer, folder / f"run{seed}")
            known = end in ("trained", "refused", "diverged")
            ends[end if known else "wrong"] += 1
            lines.add(" ".join(words))
            if not known:
                print(f"{seed}: {end}: lowerbound-train {' '.join(words)}\n{answer.err}", flush=True)
    found = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{options.count} lines, {len(lines)} different: {found}; {perf_counter() - began:.0f} s")
    return 1 if ends["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
