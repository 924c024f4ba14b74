"""Faster ways to compute what the layers define; each is held to the plain form by a test."""
