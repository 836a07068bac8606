"""Trained generators of different kinds side by side: what they cost, how good they are, and how fast they draw."""
