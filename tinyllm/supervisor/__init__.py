"""The process that keeps workers alive and adopts what they left."""
