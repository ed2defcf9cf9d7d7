"""The checkout is imported as the collection that it is, through `.collections`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / ".collections"))
