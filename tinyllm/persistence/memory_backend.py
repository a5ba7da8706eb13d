"""The import path promised to users."""

from tinyllm.storage.memory import InMemoryCheckpointStorage

__all__ = ["InMemoryCheckpointStorage"]
