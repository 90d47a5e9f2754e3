"""`python3 -m solorun`."""

import sys

from solorun.cli.main import main

sys.exit(main())
