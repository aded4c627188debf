"""`python -m stack_client.cli` is the `stack` command."""

import sys

from stack_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
