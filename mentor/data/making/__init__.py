"""From a recipe to a data set: sources are read, steps applied, shards written. Knows no torch."""
