"""Names of layers in LoRA files of other tools, resolved against the layers that a network has.

A path may begin at the denoiser (``unet.enc.8x8_conv``) or at the network in it (``enc.8x8_conv``).
Files of kohya write ``_`` for ``.``, which names contain too: such a name is looked up among the
names of all layers, written that way, and never split.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edm2lite.interop.inert_pickle import shown


class LayerNames:
    """The layers of a denoiser that can be adapted, and how files may call them.

    Args:
        shapes: Name of each layer in the denoiser -> shape of its weight.
        prefix: First part of the names within the network: ``unet`` or ``backbone``.

    Example:
        >>> names = LayerNames({"unet.enc.8x8_conv": (8, 4, 3, 3), "logvar": (1, 8)}, "unet")
        >>> names.of_path("enc.8x8_conv"), names.of_flat("unet_enc_8x8_conv")
        ('unet.enc.8x8_conv', 'unet.enc.8x8_conv')
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], prefix: str):
        self.shapes, self.prefix = dict(shapes), prefix
        self._paths: dict[str, list[str]] = {}
        self._flat: dict[str, list[str]] = {}
        for name in self.shapes:
            for path in dict.fromkeys((name, self.inner(name))):
                self._paths.setdefault(path, []).append(name)
                self._flat.setdefault(path.replace(".", "_"), []).append(name)

    @classmethod
    def of(cls, net: nn.Module, prefix: str) -> LayerNames:
        """The layers of a denoiser: all modules with a weight of 2 or 4 dimensions.

        Args:
            net: The denoiser; it may be on the meta device.
            prefix: First part of the names within its network.

        Example:
            >>> names = LayerNames.of(nn.ModuleDict({"unet": nn.Linear(4, 2)}), "unet")
            >>> names.shapes
            {'unet': (2, 4)}
        """
        weights = {name: getattr(module, "weight", None) for name, module in net.named_modules()}
        shapes = {n: tuple(w.shape) for n, w in weights.items() if isinstance(w, Tensor)}
        return cls({name: s for name, s in shapes.items() if len(s) in (2, 4)}, prefix)

    def inner(self, name: str) -> str:
        """The path of a layer within the network; its name if it lies beside the network.

        Args:
            name: Name of the layer in the denoiser.
        """
        return name.removeprefix(f"{self.prefix}.")

    def of_path(self, path: str) -> str:
        """The layer that a path with dots means.

        Args:
            path: The path.

        Raises:
            ValueError: If there is no such layer, or there are two. The message continues a
                sentence that begins with the name of the file.
        """
        return self._found(path, self._paths)

    def of_flat(self, flat: str) -> str:
        """The layer that a path with ``_`` in place of dots means.

        Args:
            flat: The path.

        Raises:
            ValueError: As :meth:`of_path`.
        """
        return self._found(flat, self._flat)

    def flat(self, name: str) -> str:
        """The path of a layer within the network, with ``_`` in place of dots.

        Args:
            name: Name of the layer in the denoiser.

        Raises:
            ValueError: If it would mean another layer too.
        """
        text = self.inner(name).replace(".", "_")
        if len(self._flat[text]) > 1:
            raise ValueError(
                f"names of kohya must tell layers apart, {text} would be"
                f" {' and '.join(self._flat[text])}; export to peft or diffusers"
            )
        return text

    def _found(self, text: str, table: Mapping[str, list[str]]) -> str:
        names = table.get(text, [])
        if len(names) == 1:
            return names[0]
        if names:
            raise ValueError(
                f"must name layers of the network unambiguously, {shown(text)} can be"
                f" {' and '.join(names)}"
            )
        raise ValueError(
            f"must adapt layers that the network has, it has no {shown(text)}; give the base that"
            " the file was made for"
        )
