"""Layers that know nothing of prompts, pictures or files."""
