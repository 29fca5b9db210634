"""Figures, each returning its Axes."""
