"""Stress tests: where the picture of one steering vector breaks."""
