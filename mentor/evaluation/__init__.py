"""How good a release is: measures, pixel oracles that are tested themselves, benchmarks and the report."""
