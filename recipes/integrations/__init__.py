"""One training loop and what it needs: options, checkpoints, the log, reports, processes."""
