"""The tests' Gradio app as a stand-in, where the anchors' own is not at hand.

python -m benchmarks.stand_in PORT CONTROL_PORT
"""

import sys
from pathlib import Path

from servers.gradio_app import serve
from servers.options import Options


def main() -> None:
    port, control_port = (int(argument) for argument in sys.argv[1:])
    serve(Options("indextts-1.0", port=port, control_port=control_port, folder=Path.cwd()))


if __name__ == "__main__":
    main()
