"""`python -m mpviz` is the command `mpviz`."""

import sys

from mpviz.cli import main

sys.exit(main())
