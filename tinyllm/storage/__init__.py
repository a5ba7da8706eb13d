"""Where traces are kept: the contract (`contract`), and its backends (`sqlite`, `memory`)."""
