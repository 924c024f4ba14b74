"""The ``edm2lite`` command: a group whose sub-commands load on first use."""

from __future__ import annotations

import importlib

import click

import edm2lite

COMMANDS = {
    "demo": "Train on real digits, rebuild EMA lengths, sweep and draw: the whole road on a CPU.",
    "generate": "Generate images from models.",
    "evaluate": "Feature statistics and Fréchet distance.",
    "plan": "Which averages to store, how often and in which type, before training.",
    "import": "Snapshots of other tools (ema-pytorch) as snapshots of ours.",
    "magnitudes": "Activations, weights and updates of a network against 1; its cost.",
