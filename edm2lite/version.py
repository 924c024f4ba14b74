"""The version of edm2lite, for the package and for its metadata (``setup.cfg``)."""

__version__ = "0.7.0"
