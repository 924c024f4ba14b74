"""What fine-tuning adds to an embedding: vectors of learned classes, and a hypernetwork.

Both leave the network as it is. A learned class has a vector of its own beside the layer of the
other classes: as one more input of that layer it would change their length, since weights are
normalized over inputs. A hypernetwork is joined by angles that are 0 at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.layers import MPConv
from edm2lite.network.operations import SILU_RMS, mp_join


def num_classes(label_dim: int, learned: Sequence[int] | None) -> int:
    """Number of classes of a network, those that it has learned later included.

    Args:
        label_dim: Number of classes that it was trained on.
        learned: Numbers of learned classes, in the place of classes that it has, or following them.

    Raises:
        ValueError: If a number stands twice or is out of range, or the network has no classes.

    Example:
        >>> num_classes(10, [3]), num_classes(10, [10, 11])
        (10, 12)
    """
    if learned is None:
        return label_dim
    total = max([label_dim, *(1 + c for c in learned)])
    is_gapless = all(c in learned for c in range(label_dim, total))
    if not (label_dim and learned and min(learned) >= 0 and is_gapless):
        raise ValueError(
            f"learned_classes must be classes below label_dim = {label_dim} or the next ones, got"
            f" {list(learned)[:5]}"
        )
    if len(set(learned)) < len(learned):
        raise ValueError(f"learned_classes must be distinct, got {list(learned)[:5]}")
    return total


def check_ratio(ratio: int | None) -> None:
    """Raise ValueError unless a hypernetwork can be that wide.

    Example:
        >>> check_ratio(2)
    """
    if ratio is not None and not 1 <= ratio <= 64:
        raise ValueError(f"hypernetwork must lie between 1 and 64, got {ratio}")


class LearnedClasses(nn.Module):
    """A vector for each of some classes, in place of what the layer of classes has for them.

    Args:
        classes: Numbers of the classes.
        label_dim: Number of classes of that layer.
        width: Length of the vectors.
        is_unit: Whether vectors have RMS 1: then they are normalized on use, and
            :func:`edm2lite.network.layers.normalize_weights_` resets what is stored.

    Example:
        >>> learned = LearnedClasses([2], label_dim=2, width=4)
        >>> one_hot = torch.eye(3)[[0, 2]]
        >>> emb = learned(one_hot, base=lambda known: known @ torch.full((2, 4), 5.0))
        >>> emb[0], round(emb[1].square().mean().item(), 3)
        (tensor([5., 5., 5., 5.], grad_fn=<SelectBackward0>), 1.0)
    """

    def __init__(self, classes: Sequence[int], label_dim: int, width: int, *, is_unit: bool = True):
        super().__init__()
        self.classes, self.label_dim, self.is_unit = list(classes), label_dim, is_unit
        self.weight = nn.Parameter(torch.randn(len(self.classes), width))

    def forward(self, vectors: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """The embedding of classes.

        Args:
            vectors: [N, num_classes] one-hot vectors.
            base: Function from [N, label_dim] one-hot vectors to embeddings [N, width], which is
                not asked about learned classes.

        Returns:
            [N, width] float32; that of other classes is what ``base`` returns, to the last bit.
        """
        own = vectors[:, self.classes]
        is_learned = (own != 0).any(1, keepdim=True)
        known = vectors[:, : self.label_dim].masked_fill(is_learned, 0)
        rows = unit_rms(self.weight, dim=1) if self.is_unit else self.weight
        return torch.where(is_learned, own @ rows, base(known))

    @torch.no_grad()
    def start_(self, vectors: Tensor) -> None:
        """Begin at the mean of some vectors [N, width], as long as vectors should be.

        That is RMS 1, or the mean length of these vectors where none is required.
        """
        mean, lengths = vectors.mean(0), vectors.square().mean(1).sqrt()
        rms = 1.0 if self.is_unit else lengths.mean()
        self.weight.copy_((mean * rms / mean.square().mean().sqrt()).expand_as(self.weight))

    def fixed_length_weights(self) -> list[nn.Parameter]:
        """The vectors, if they have a fixed length and are trained."""
        return [self.weight] if self.is_unit and self.weight.requires_grad else []


class Hypernetwork(nn.Module):
    """Two layers beside an embedding: ``cos(phi) c + sin(phi) y(c)``, with phi = 0 at the start.

    Args:
        width: Length of the embedding.
        ratio: Width of the hidden layer over that of the embedding.

    Example:
        >>> c = torch.randn(2, 8)
        >>> Hypernetwork(8, ratio=1)(c).equal(c)
        True
    """

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.fc1 = MPConv(width, ratio * width)
        self.fc2 = MPConv(ratio * width, width, in_rms=SILU_RMS)
        self.angles = nn.Parameter(torch.zeros(width))

    def forward(self, c: Tensor) -> Tensor:
        """[N, width] -> [N, width], of magnitude 1 for input of magnitude 1."""
        return mp_join(c, self.fc2(F.silu(self.fc1(c))), self.angles)
