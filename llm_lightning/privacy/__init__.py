"""Differentially private training: the gradient of each unit of privacy, clipped and noised, and what it costs."""
