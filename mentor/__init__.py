"""Train, fine-tune and sample image generators that take text and images together as their instruction."""

__version__ = "0.1.0"
