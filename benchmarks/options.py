"""What a run is told on its command line."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """`anchors` is None where the folder is missing: then there is nothing to compare with.
    `json` is the file that the tables are written to as well."""

    names: list[str]
    anchors: Path | None
    original_python: Path
    is_quick: bool
    json: Path | None = None

    def rounds(self, full: int) -> int:
        """How often each server has its turn."""
        return 1 if self.is_quick else full

    def seconds(self, full: float) -> float:
        """How long one turn takes."""
        return full / 4 if self.is_quick else full


def parse(names: Sequence[str], arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default the command line's; `names` are the benchmarks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the service beside the original design; prints Markdown tables.",
    )
    parser.add_argument("names", nargs="*", metavar="|".join(names), help="default: all")
    parser.add_argument(
        "--anchors",
        type=Path,
        default=PROJECT.parent / "shared" / "anchors",
        help="folder with the original design and its backend (default: %(default)s)",
    )
    parser.add_argument(
        "--original-python",
        type=Path,
        default=Path(sys.executable),
        help="the interpreter that has the original's packages (default: this one)",
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", type=Path, help="also write the tables to this file, for plot")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    anchors = given.anchors.resolve() if given.anchors.is_dir() else None
    return Options(
        given.names or list(names), anchors, given.original_python, given.quick, given.json
    )
