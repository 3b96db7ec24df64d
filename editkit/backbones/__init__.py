"""Adapters that make published networks usable by the engine: denoisers, text-image encoders and feature networks."""
