"""Training: the only package, beside the data module, that knows Lightning."""
