"""Whether a configuration and a data set go together; checked before anything is written."""

from __future__ import annotations

import dataclasses

import numpy as np

from edm2lite.dataset import ImageDataset
from edm2lite.models.encoders import PixelEncoder

from .config import RunConfig
from .data import make_order


def with_encoder(config: RunConfig, dataset: ImageDataset) -> RunConfig:
    """The configuration, with what it leaves out of a latent encoder taken from the data set.

    Raises:
        ValueError: The encoder is of another kind than the data set, or something is still missing.
    """
    encoder = config.encoder
    if isinstance(encoder, PixelEncoder):
        if dataset.encoder is None:
            return config
        raise ValueError(f"{dataset.name} holds latents, encoder.kind must be latents")
    if dataset.encoder is None:
        raise ValueError(
            f"{dataset.name} holds pixels where encoder.kind is latents; encode it by edm2lite"
            " dataset encode, or set encoder.kind=pixels"
        )
    encoder = encoder.completed(dataset.encoder)
    channels = dataset.image_shape[0]
    if encoder.vae is None or encoder.input_range is None or len(encoder.mean) != channels:
        raise ValueError(
            f"{dataset.name} does not say what made its latents; set encoder.vae, .input_range,"
            f" .mean and .std ({channels} values each)"
        )
    if encoder.sigma_data != config.net.sigma_data:
        raise ValueError(
            f"encoder.sigma_data must be net.sigma_data = {config.net.sigma_data}, got"
            f" {encoder.sigma_data}"
        )
    return dataclasses.replace(config, encoder=encoder)


def check_fit(config: RunConfig, dataset: ImageDataset) -> None:
    """Raise ValueError unless the network takes the images and labels of the data set."""
    unet = config.net.unet
    channels = dataset.image_shape[0]
    if channels != unet.img_channels:
        raise ValueError(
            f"net.unet.img_channels must be the {channels} channels of {dataset.name}, got"
            f" {unet.img_channels}"
        )
    if unet.cond_channels:
        raise ValueError(
            f"net.unet.cond_channels must be 0 here, got {unet.cond_channels}: data sets hold no"
            " conditioning images; train such a network in a loop of your own"
        )
    _check_sizes(config, dataset)
    make_order(dataset, config.data, config.seed, config.batch_size)
    if unet.label_dim and unet.label_dim != dataset.label_dim:
        raise ValueError(
            f"net.unet.label_dim must be the {dataset.label_dim} classes of {dataset.name}, or 0"
            f" for an unconditional network; got {unet.label_dim}"
        )


def _check_sizes(config: RunConfig, dataset: ImageDataset) -> None:
    """The resolution of the network is the longer side; of several sizes, it lies among them."""
    unet = config.net.unet
    sizes = np.unique(dataset.all_sizes(), axis=0)
    factor = 2 ** (len(unet.channel_mult) - 1)
    low = sizes.min() if len(sizes) > 1 else sizes.max()
    odd = sizes[(sizes % factor).any(axis=1)]
    if len(odd) or not low <= unet.img_resolution <= sizes.max():
        height, width = odd[0] if len(odd) else sizes[0]
        among = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
        raise ValueError(
            f"net.unet.img_resolution must be the size of the images of {dataset.name}"
            f" ({height} x {width}{among}), got {unet.img_resolution}; sides must be multiples of"
            f" {factor}"
        )
