"""Checks of a composed config, by subject. Each yields messages with the mistake, its key, and the remedy."""
