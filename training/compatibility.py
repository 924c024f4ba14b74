"""Whether a configuration and a data set are compatible."""

from __future__ import annotations

import dataclasses

import numpy as np

from edm2lite.dataset import ImageDataset
from edm2lite.models.encoders import LatentEncoder
from edm2lite.network.conditions import ClassLabel, ConditionImage, described, missing
from edm2lite.network.wiring import UNetShape

from .config import RunConfig
from .data import make_order


def with_encoder(config: RunConfig, dataset: ImageDataset) -> RunConfig:
    """The configuration, with settings that it leaves out of a latent encoder from the data set.

    Args:
        config: Configuration of the run.
        dataset: Training data.

    Raises:
        ValueError: If the encoder is not for what the data set stores, or a setting is missing in
            both.
    """
    encoder = config.encoder
    if not isinstance(encoder, LatentEncoder):
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
    """Raise ValueError unless the network takes the images and conditions of the data set."""
    network = config.net.backbone
    shape = config.encoder.shape(dataset.image_shape)
    if shape[0] != network.img_channels:
        raise ValueError(
            f"net.backbone.img_channels must be the {shape[0]} channels of {dataset.name}, got"
            f" {network.img_channels}"
        )
    images = [c for c in network.conditions if isinstance(c, ConditionImage)]
    if images and shape != dataset.image_shape:
        raise ValueError(
            f"encoder.kind must be pixels for a network that takes {described(images)}, got"
            f" {config.encoder.kind}, which is for networks that are told no images"
        )
    _check_sizes(config, dataset)
    _check_attention(config)
    make_order(dataset, config.data, config.seed, config.batch_size)
    lacking = missing(network.conditions, dataset.conditions)
    if lacking:
        advice = ""
        if dataset.table is None and any(isinstance(c, ClassLabel) for c in lacking):
            advice = (
                f"; to give the images of {dataset.name} classes, convert them from a folder per"
                " class, or from a list, by edm2lite dataset convert"
            )
        elif config.text is None and dataset.captions is not None:
            advice = f"; to tell it the captions of {dataset.name}, set text.kind=static"
        raise ValueError(
            f"net.backbone must take what {dataset.name} has ({described(dataset.conditions)}) or"
            f" less, got {described(lacking)}{advice}"
        )


def _check_attention(config: RunConfig) -> None:
    """Check that a network which was told where to attend does so somewhere."""
    network = config.net.backbone
    if not isinstance(network, UNetShape) or not network.attn_resolutions:
        return
    levels = [network.img_resolution >> i for i in range(len(network.channel_mult))]
    default = UNetShape.attn_resolutions
    if network.attn_resolutions != default and not {*levels} & {*network.attn_resolutions}:
        raise ValueError(
            f"net.backbone.attn_resolutions must be among the resolutions"
            f" {', '.join(map(str, levels))} of the network, got"
            f" {', '.join(map(str, network.attn_resolutions))}; [] is for none"
        )


def _check_sizes(config: RunConfig, dataset: ImageDataset) -> None:
    """Check that the resolution of the network is the longer side, or among several sizes."""
    network = config.net.backbone
    channels = dataset.image_shape[0]
    stored = np.unique(dataset.all_sizes(), axis=0).tolist()
    sizes = np.array([config.encoder.shape((channels, h, w))[1:] for h, w in stored])
    factor = network.size_multiple
    low = sizes.min() if len(sizes) > 1 else sizes.max()
    odd = sizes[(sizes % factor).any(axis=1)]
    if len(odd) or not low <= network.img_resolution <= sizes.max():
        height, width = odd[0] if len(odd) else sizes[0]
        among = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
        raise ValueError(
            f"net.backbone.img_resolution must be the size of the images of {dataset.name}"
            f" ({height} x {width}{among}), got {network.img_resolution}; sides must be multiples"
            f" of {factor}"
        )
