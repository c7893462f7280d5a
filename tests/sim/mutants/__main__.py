"""See runner.py."""

import sys

from tests.sim.mutants.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
