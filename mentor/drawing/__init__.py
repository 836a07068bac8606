"""Drawing with a release: models, prompts, one prompt's pictures, and jobs of many prompts."""
