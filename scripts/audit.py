"""Ask pip-audit whether known vulnerabilities are in the pinned versions of requirements*.txt.

    python scripts/audit.py [OPTION OF PIP-AUDIT ...]

Ends with 1 if there are, and with 0, saying why, where nobody can tell: offline, or at a mirror
that has packages without what is known of them. pip-audit itself calls the latter "no known
vulnerabilities".
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
_SECONDS = 120  # for all of it
_PATIENCE = 10  # seconds, for one answer


class Unknown(Exception):
    """Nobody tells what is known of the packages; the message says why."""


def audited(*options: str) -> list[dict[str, Any]]:
    """Each pinned package that something is known of: its `name`, `version` and `vulns`.

    Raises Unknown.
    """
    files = [f"--requirement={path}" for path in sorted(PROJECT.glob("requirements*.txt"))]
    command = [sys.executable, "-m", "pip_audit", *files, "--no-deps", "--disable-pip"]
    command += ["--format=json", "--progress-spinner=off", f"--timeout={_PATIENCE}", *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        told = json.loads(run.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        raise Unknown(f"no answer within {_SECONDS} s") from None
    except ValueError:
        lines = run.stderr.strip().splitlines() or [f"pip-audit ended with {run.returncode}"]
        raise Unknown(lines[-1]) from None
    known = [package for package in told if "skip_reason" not in package]
    if not known:
        raise Unknown(f"nothing is known of any of the {len(told)} pinned packages")
    return known


def main() -> None:
    try:
        known = audited(*sys.argv[1:])
    except Unknown as reason:
        print(f"audit skipped: {reason}")
        return
    found = [(package, each) for package in known for each in package["vulns"]]
    for package, each in found:
        fixed_in = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed_in}")
    print(f"audited {len(known)} pinned packages: {len(found)} known vulnerabilities")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
