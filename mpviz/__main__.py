"""`python -m mpviz` is the command `mpviz`."""

import sys

from mpviz.cli import main

if __name__ == "__main__":  # whoever only imports this module wants no end of the process
    sys.exit(main())
