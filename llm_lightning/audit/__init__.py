"""Measure social bias of a model, by published methods: `python train.py task=audit run=<run>`."""
