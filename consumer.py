"""A consumer: runs the handlers of MODULE:APP. `python consumer.py --help` tells its options."""

import sys

from oncemq.cli.main import run

if __name__ == "__main__":
    sys.exit(run("consumer"))
