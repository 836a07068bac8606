"""The parts of tools/chaos.py: commands that are killed, and runs that are compared."""
