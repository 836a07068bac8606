"""Files of data sets: tars, indexes and manifests, written whole, read safely, wherever they lie."""
