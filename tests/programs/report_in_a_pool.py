"""`degrade report` with a pool of processes, however little there is to measure; the command line is its own."""

import sys

from runner import report_pool
from runner.cli import main

report_pool.POOL_SECONDS = 0
if __name__ == "__main__":  # in the pool it is imported
    sys.exit(main(["report", *sys.argv[1:]]))
