"""Guidance in two dimensions, where the truth is known: ``edm2lite toy``."""
