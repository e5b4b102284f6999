"""Experiments: settings, stages, run directories, and the figures drawn from them."""
