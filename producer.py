"""A producer: sends the lines or rows of a file. `python producer.py --help` tells its options."""

import sys

from oncemq.cli.main import run

if __name__ == "__main__":
    sys.exit(run("producer"))
