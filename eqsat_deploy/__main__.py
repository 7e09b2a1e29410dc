"""`python -m eqsat_deploy` is the command `eqsat-deploy`."""

import sys

from eqsat_deploy.cli import main

sys.exit(main())
