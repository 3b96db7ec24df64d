"""Trainable parts that methods add to a frozen backbone."""
