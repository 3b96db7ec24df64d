"""Editors that train nothing, to hold methods against."""
