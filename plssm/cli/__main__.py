"""``python -m plssm.cli`` is the command ``plssm``."""

import sys

from plssm.cli import main

sys.exit(main())
