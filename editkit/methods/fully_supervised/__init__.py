"""Methods that learn from pairs, before and after the edit."""
