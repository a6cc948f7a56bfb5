"""Accuracy-aware quantization tuning: faster and smaller models that keep their accuracy.

Importing this package loads no machine-learning framework.
"""
