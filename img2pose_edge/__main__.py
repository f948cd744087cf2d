"""``python -m img2pose_edge`` is the command ``img2pose-edge``."""

import sys

from img2pose_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
