"""Side-by-side measurements of the service and the original design; see README.md."""

import sys
from pathlib import Path

# For the Gradio apps of the tests, which stand in where there is no other, and in `chaos`.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
