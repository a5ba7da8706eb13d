"""The import path promised to users."""

from tinyllm.storage.contract import CheckpointRecord, CheckpointStorage, StorageConfig

__all__ = ["CheckpointRecord", "CheckpointStorage", "StorageConfig"]
