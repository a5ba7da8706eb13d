"""What runs: pure data and functions, without I/O and without concurrency."""
