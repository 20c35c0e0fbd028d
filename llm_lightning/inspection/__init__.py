"""Inspect the rows of a data set for what would mislead a model or its scores: duplicates, leaks, contradictions, personal data."""
