"""Methods that learn from unpaired or unlabelled images."""
