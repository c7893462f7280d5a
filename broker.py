"""The broker: owns the log. `python broker.py --help` tells its options."""

import sys

from oncemq.cli.main import run

if __name__ == "__main__":
    sys.exit(run("broker"))
