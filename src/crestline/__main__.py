"""`python -m crestline`: the same as the `crestline` command."""

import sys

from crestline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
