"""Weights of other projects: read safely, accounted for key by key, and written as release folders (and back)."""
