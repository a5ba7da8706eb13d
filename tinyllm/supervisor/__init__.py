"""The process that keeps workers alive, and has what they left adopted.

`supervisor.py` keeps slots filled with workers; `life.py` is one worker, from its start to the cause of its death;
`worker.py` is what runs in its process; `deaths.py` and `restarts.py` decide what follows from a death.
"""
