"""Differentiable losses, one value per image; the networks they need are handed in."""
