"""``python -m agssp_zoo`` is ``agssp-zoo``."""

import sys

from agssp_zoo.cli import main

sys.exit(main())
