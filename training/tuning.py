"""Fine-tuning: from which model a run begins, and what of it is trained.

=====================  =============================================================================
kind                   what is trained
=====================  =============================================================================
``lora``               W0 + s B A in place of the weight W0 of layers, before normalization
``embedding``          the vector of a class that the model is to learn
``textual_inversion``  vectors of a word, at the input of the text encoder
``hypernetwork``       two layers beside the embedding of noise level and class, joined by an angle
``controlnet``         a second encoder, which follows an image (:mod:`.control_tuning`)
``full``               everything, or everything but u(sigma)
=====================  =============================================================================

Everything else is frozen: the forward pass, weight normalization and files take it as it is.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from edm2lite.dataset import ImageDataset
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.kinds import Kinds
from edm2lite.models.loading import Model, read_metadata
from edm2lite.network.adapters import LayerRank, add_low_rank, low_rank_layers
from edm2lite.strict_json import parse_object

from .tuned import Factored, Tuned, Whole, added, new_adapter

if TYPE_CHECKING:
    from .config import RunConfig

TUNINGS: Kinds[type[Tuning]] = Kinds(
    "kind of fine-tuning",
    {
        "lora": "edm2lite.training.tuning:LoRA",
        "embedding": "edm2lite.training.tuning:Embedding",
        "hypernetwork": "edm2lite.training.tuning:Hypernetwork",
        "textual_inversion": "edm2lite.training.textual_inversion:TextualInversion",
        "controlnet": "edm2lite.training.control_tuning:ControlNet",
        "full": "edm2lite.training.tuning:Full",
    },
)
"""Ways to fine-tune by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class Tuning(abc.ABC):
    """A way to fine-tune; a subclass is a frozen dataclass with its options.

    Attributes:
        kind: Name in :data:`TUNINGS`, or ``module:Class`` of the subclass.
    """

    kind: str

    kinds: ClassVar[Kinds[type[Tuning]]] = TUNINGS

    def fields(self, net: PrecondConfig) -> dict[str, Any]:
        """Fields of the network's configuration that make room for what is trained."""
        return {}

    def retold(self, dataset: ImageDataset) -> ImageDataset:
        """The training data, with the captions that it is taught by."""
        return dataset

    @abc.abstractmethod
    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """Freeze what is not trained, and add what is.

        Args:
            net: The denoiser, with the weights of the model.
            base: The model.
            seed: Seed of the run.
        """


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """Train everything.

    Attributes:
        freeze_uncertainty: Whether u(sigma) stays that of the model, which a few images would
            teach to give themselves other weights.
    """

    kind: Literal["full"] = "full"
    freeze_uncertainty: bool = False

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`Tuning.begin`."""
        net.logvar_linear.requires_grad_(not self.freeze_uncertainty)
        return Whole(net)


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Train low-rank adapters of linear layers and convolutions, inside weight normalization.

    Attributes:
        rank: Largest rank of a layer.
        alpha: Numerator of the scale alpha / r. [default: r, so that the scale is 1]
        layers: Ranks by the names of layers: the first entry whose pattern is found decides, and
            other layers are not adapted. [default: all layers of the network have ``rank``]

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> LoRA(layers=(LayerRank(pattern="attn_", rank=8),)).kind
        'lora'
    """

    kind: Literal["lora"] = "lora"
    rank: int = 4
    alpha: float | None = None
    layers: tuple[LayerRank, ...] = ()

    def __post_init__(self) -> None:
        LayerRank(rank=self.rank, alpha=self.alpha)

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`Tuning.begin`."""
        chosen = self.layers or (LayerRank(rank=self.rank, alpha=self.alpha),)
        add_low_rank(net, chosen, seed=seed, prefix=f"{net.config.backbone.tensor_prefix}.")
        scales = {name: layer.scale for name, layer in low_rank_layers(net).items()}
        return Factored(net, new_adapter("lora", base, scales=scales))


@dataclass(frozen=True, kw_only=True)
class Embedding(Tuning):
    """Train the vector of a class, and nothing else: other classes stay as they are.

    Attributes:
        label: Number of the class; one that the network has is replaced. [default: the next one]
        start: Class whose vector it begins with. [default: the mean of all]
    """

    kind: Literal["embedding"] = "embedding"
    label: int | None = None
    start: int | None = None

    def fields(self, net: PrecondConfig) -> dict[str, Any]:
        """The class, as one that was learned."""
        known = getattr(net.backbone, "label_dim", 0)
        if not known or not hasattr(net.backbone, "learned_classes"):
            raise ValueError(
                "tune.kind=embedding needs a network of kind unet, dit or mp_dit with classes, got"
                f" {net.backbone.kind} with {known}"
            )
        return {"learned_classes": (known if self.label is None else self.label,)}

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`Tuning.begin`.

        Raises:
            ValueError: If there is no class to begin with, or the model has learned one already.
        """
        network: Any = net.backbone
        known = network.config.label_dim
        if getattr(base.net.config.backbone, "learned_classes", None):
            raise ValueError(f"{base.name} has learned a class already; adapt the model before it")
        if self.start is not None and not 0 <= self.start < known:
            raise ValueError(f"tune.start must be one of the {known} classes, got {self.start}")
        with torch.no_grad():
            vectors = network.known_classes(torch.eye(known))
        network.emb_learned.start_(vectors if self.start is None else vectors[[self.start]])
        return added(net, network.emb_learned, "embedding", base, self.fields(net.config))


@dataclass(frozen=True, kw_only=True)
class Hypernetwork(Tuning):
    """Train two layers beside the embedding of noise level and class, joined by angles.

    Attributes:
        ratio: Width of the hidden layer over that of the embedding.
    """

    kind: Literal["hypernetwork"] = "hypernetwork"
    ratio: int = 1

    def fields(self, net: PrecondConfig) -> dict[str, Any]:
        """The width of the hidden layer."""
        if not hasattr(net.backbone, "hypernetwork"):
            raise ValueError(
                "tune.kind=hypernetwork needs a network of kind unet, dit or mp_dit, got"
                f" {net.backbone.kind}"
            )
        return {"hypernetwork": self.ratio}

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`Tuning.begin`.

        Raises:
            ValueError: If the model has a hypernetwork already.
        """
        if getattr(base.net.config.backbone, "hypernetwork", None):
            raise ValueError(f"{base.name} has a hypernetwork already; adapt the model before it")
        network: Any = net.backbone
        return added(net, network.emb_hyper, "hypernetwork", base, self.fields(net.config))


def begin(config: RunConfig, net: Precond, base: Model | None) -> Tuned:
    """Give the network the weights to begin with, and settle what is trained.

    Args:
        config: Configuration of the run.
        net: The denoiser, with random weights.
        base: The model that is fine-tuned, or None.

    Raises:
        ValueError: If the network is not that of the model.
    """
    if base is None:
        return Whole(net)
    given, own = base.net.state_dict(), net.state_dict()
    new = () if config.tune is None else config.tune.fields(config.net)
    lacking = [name for name in own if name not in given]
    other = [n for n, value in given.items() if n not in own or own[n].shape != value.shape]
    if other or (lacking and not new):
        raise ValueError(
            f"net must be the network of {base.name}, they differ in {(other or lacking)[0]}; leave"
            " net out"
        )
    if not next(net.parameters()).is_meta:  # where only sizes are asked for
        net.load_state_dict(given, strict=False)
    tuned = (config.tune or Full()).begin(net, base, config.seed)
    if config.prior is not None:
        net.logvar_linear.requires_grad_(False)  # few images would teach it to weigh them less
    return tuned


def with_tuning(config: RunConfig, world_size: int) -> RunConfig:
    """The configuration, with the fields of the network that make room for what is trained.

    Args:
        config: Configuration of the run.
        world_size: Number of processes that will share the work.

    Raises:
        ValueError: If what is trained cannot be sharded, or the network has no room for it.
    """
    if config.tune is None:
        return config
    if config.parallel == "fsdp" and world_size > 1 and config.tune.kind != "full":
        raise ValueError(
            f"parallel must be ddp to train an adapter (tune.kind={config.tune.kind}), whose few"
            " weights are not worth sharding, got fsdp"
        )
    backbone = dataclasses.replace(config.net.backbone, **config.tune.fields(config.net))
    net = dataclasses.replace(config.net, backbone=backbone)
    return dataclasses.replace(config, net=net)


def with_model(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's YAML file, with network and encoders of the model that ``init`` names.

    What the file gives goes before what the model has. A file that gives a whole network and an
    encoder, as in the folder of a run, is left as it is.
    """
    init, net = values.get("init"), values.get("net", {})
    if not isinstance(init, str) or not isinstance(net, Mapping):
        return values
    if "img_resolution" in dict(net.get("backbone") or {}) and "encoder" in values:
        return values
    metadata = read_metadata(init)
    if "model" not in metadata:
        raise ValueError(f"init must be one of our models, {init} has no configuration of one")
    model = PrecondConfig.from_json(metadata["model"], init)
    found: dict[str, Any] = {"net": parse_object(model.to_json())}
    for key, stored in (("encoder", "encoder"), ("text", "text_encoder")):
        if stored in metadata:
            found[key] = parse_object(metadata[stored])
    return _over(found, values)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others in place of them, key by key."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            both[key] = _over(inner, value)
        else:
            both[key] = value
    return both
