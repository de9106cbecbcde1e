"""``python -m pdray``."""

from __future__ import annotations

import sys

from pdray.cli.main import main

sys.exit(main())
