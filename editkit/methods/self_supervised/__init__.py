"""Methods that make their own supervision: parts of an image hidden and painted again."""
