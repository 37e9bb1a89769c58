"""Exit with 1 where Python's sqlite3 cannot load sqlite-vec: see README.md, Install."""

import sqlite3
import sys

loads = hasattr(sqlite3.Connection, "enable_load_extension")
sys.exit(not loads or sqlite3.sqlite_version_info < (3, 38))
