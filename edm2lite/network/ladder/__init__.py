"""Configs A to F of EDM2, the steps from the ADM network to the magnitude-preserving one (G).

:mod:`edm2lite.network.ladder.networks` has a class for each rung, derived from the one before it.
"""
