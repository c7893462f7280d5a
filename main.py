"""One process that speaks JSON lines on stdin and stdout, with the same cores inside."""

import sys

from oncemq.cli.main import run

if __name__ == "__main__":
    sys.exit(run("node"))
