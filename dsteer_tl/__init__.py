"""Measures how much of preference tuning is a steering vector."""
