"""The trainer, started by ``python -m edm2lite.training`` or torchrun."""
