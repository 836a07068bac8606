"""From records in shards to examples in batches. Knows files and pictures, knows no model."""
