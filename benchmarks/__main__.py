"""python -m benchmarks: measure, and print Markdown. Adding a benchmark is adding a module with a
`run(options) -> Table`, and its line here."""

import signal
import sys
from collections.abc import Callable, Mapping

from benchmarks import chaos, herd, hits, long_text, misses, replicas, waiting
from benchmarks.load import WrongAnswer
from benchmarks.machine import described
from benchmarks.options import Options, parse
from benchmarks.servers import CannotMeasure
from benchmarks.tables import Table

BENCHMARKS: Mapping[str, Callable[[Options], Table]] = {
    "hits": hits.run,
    "misses": misses.run,
    "herd": herd.run,
    "long_text": long_text.run,
    "replicas": replicas.run,
    "waiting": waiting.run,
    "chaos": chaos.run,
}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so stop the servers first
    options = parse(list(BENCHMARKS))
    if options.anchors is None:
        print(
            "The anchors were not found (see --anchors): the service is measured alone, and "
            "compared with nothing.",
            file=sys.stderr,
        )
    print(described(options), flush=True)
    try:
        for name in options.names:
            print(f"\n{BENCHMARKS[name](options)}", flush=True)
    except (CannotMeasure, WrongAnswer) as error:
        sys.exit(f"{name} could not be measured: {error}")


if __name__ == "__main__":
    main()
