"""python -m generant.cli"""

import sys

from . import main

sys.exit(main())
