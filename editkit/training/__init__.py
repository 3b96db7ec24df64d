"""Training: the Method base, checkpoints, the run directory and the loop around Lightning's Trainer."""
