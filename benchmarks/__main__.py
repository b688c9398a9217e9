"""python -m benchmarks: measure, and print Markdown. Adding a benchmark is adding a module with a
`run(options) -> Table`, and its line here."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict

from benchmarks import chaos, herd, hits, long_text, memory, misses, replicas, waiting
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
    "memory": memory.run,
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
    about = described(options)
    print(about, flush=True)
    tables: dict[str, Table] = {}
    try:
        for name in options.names:
            tables[name] = BENCHMARKS[name](options)
            print(f"\n{tables[name]}", flush=True)
            _write_json(options, about, tables)
    except (CannotMeasure, WrongAnswer) as error:
        sys.exit(f"{name} could not be measured: {error}")


def _write_json(options: Options, about: str, tables: Mapping[str, Table]) -> None:
    """What plot.py draws; after each benchmark anew, so that an ended run has brought something."""
    if options.json is not None:
        told = {name: asdict(table) for name, table in tables.items()}
        text = json.dumps({"about": about, "tables": told}, ensure_ascii=False, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
