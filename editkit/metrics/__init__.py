"""Evaluation: what an edit changed, what it kept, how it looks, and how sure the numbers are."""
