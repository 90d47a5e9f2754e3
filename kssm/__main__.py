"""`python3 -m kssm`."""

import sys

from kssm.cli import main

sys.exit(main())
