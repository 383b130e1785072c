"""What has changed between two files of results: python -m rusttorch.bench.compare old.jsonl new.jsonl."""

import math
import statistics
import sys
from pathlib import Path

from . import results


def changes(old, new):
    """Lines of text: the cells whose ratio to stock has changed, and the geometric mean over all that both have.

    A cell has changed where the intervals of its two ratios do not meet, and the ratios are more than 3 % apart.
    Times are not compared: ratios to stock, measured beside it, are what is the same on a busy machine.
    """
    before = {results.key(line): line for line in old}
    ratios, lines = [], []
    for line in new:
        then = before.get(results.key(line))
        if then is None:
            continue
        for arm in ("name", "use"):
            a, b = then[arm], line[arm]
            change = b["ratio"] / a["ratio"]
            ratios.append(change)
            apart = a["interval"][1] < b["interval"][0] or b["interval"][1] < a["interval"][0]
            if apart and abs(change - 1) > 0.03:
                where = f"{line['op']}, {line['shape'] or line['n']}, {line['dtype']}, {line['threads']} thread(s)"
                lines.append(f"{where}, {arm}: {a['ratio']:.2f}x, now {b['ratio']:.2f}x ({change - 1:+.0%})")
    mean = statistics.geometric_mean(ratios) if ratios else math.nan
    return [*lines, f"{len(lines)} of {len(ratios)} ratios changed; their geometric mean is {mean:.3f} of what it was"]


if __name__ == "__main__":
    print(*changes(*(results.load(Path(path), "ops") for path in sys.argv[1:3])), sep="\n")
