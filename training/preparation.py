"""Everything that is settled and checked before a run writes its first file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.models.loading import Model, load

from .compatibility import check_fit, with_encoder
from .config import RunConfig
from .fields import check_fields
from .hook import Hook
from .hooks import all_hooks
from .prior_images import prior_dataset
from .run_folder import check_base, check_run, check_world
from .selection import selected, with_class_names
from .sink import Sink
from .sinks import all_sinks
from .text import with_captions, with_text_encoder
from .tuning import with_tuning


class Prepared(NamedTuple):
    """What a run consists of, before it starts.

    Attributes:
        config: Configuration, with what the data set adds to it.
        dataset: Training data.
        hooks: Hooks, in the order in which they are called.
        sinks: Sinks, in the order in which they are called.
        base: The model that is fine-tuned, or None.
        prior: Images that it is to keep, or None.
    """

    config: RunConfig
    dataset: ImageDataset
    hooks: list[Hook]
    sinks: list[Sink]
    base: Model | None
    prior: ImageDataset | None

    @property
    def base_identity(self) -> str | None:
        """Identity of the model that is fine-tuned, or None."""
        return None if self.base is None else self.base.identity


def prepare(
    config: RunConfig,
    run_dir: Path,
    world_size: int,
    hooks: Sequence[Hook] = (),
    sinks: Sequence[Sink] = (),
) -> Prepared:
    """Open the data and check that everything goes together.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run, which need not exist.
        world_size: Number of processes that will share the work.
        hooks: Hooks besides those of the configuration.
        sinks: Sinks besides those of the configuration.

    Raises:
        FileNotFoundError: If the data set or the model to fine-tune does not exist.
        ValueError: If the data does not fit the network, a hook does not fit the run, or the folder
            belongs to another run.
        ImportError: If a sink needs a package that is not installed.
    """
    config = with_tuning(config, world_size)
    dataset = selected(open_dataset(config.data.source), config)
    config = with_text_encoder(with_encoder(config, dataset), dataset, run_dir)
    dataset = with_captions(config, dataset)
    check_fit(config, dataset)
    check_world(config, world_size)
    check_run(config, run_dir)
    base = None if config.init is None else load(config.init)
    if base is not None:
        check_base(run_dir, base.identity, base.name)
    dataset = with_class_names(dataset, base)
    prior = prior_dataset(config, dataset, base, run_dir)
    prepared = Prepared(
        config, dataset, all_hooks(config, hooks), all_sinks(config, sinks), base, prior
    )
    for hook in hooks:
        check_fields(hook, config.batch_size, f"{type(hook).__name__}.")
    for hook in prepared.hooks:
        hook.check(config, dataset)
    for sink in prepared.sinks:
        sink.check()
    return prepared
