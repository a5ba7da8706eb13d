"""Who runs a trace: actors that share nothing and send each other frozen messages."""
