"""The import path promised to users."""

from tinyllm.storage.sqlite import SQLiteCheckpointStorage

__all__ = ["SQLiteCheckpointStorage"]
