"""The version of edm2lite; setup.cfg reads it here too."""

__version__ = "0.2.0.dev0"
