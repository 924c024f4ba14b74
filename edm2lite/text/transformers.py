"""Text encoders of the package transformers: CLIP, T5 and others, from a folder or the Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from edm2lite.extras import require
from edm2lite.messages import one_line
from edm2lite.tensorfile import as_bytes
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.model import TextModel, TextStates, plain
from edm2lite.text.place import MOVED, absolute, may_download, present
from edm2lite.text.words import WordInput, in_order

_LOADED: dict[tuple[str, str, int], TextModel] = {}  # the last two
_LOADING = threading.Lock()
_PROBE = "Café 東京 ❤ 2 Red hearts"  # what another tokenizer would cut differently


@dataclass(frozen=True, kw_only=True)
class TransformersTextEncoder(TextEncoder):
    """The last hidden states of a text encoder, and a pooled vector.

    The pooled vector of a CLIP is its projection, or without one its pooler output (the state of
    the end of the text); that of any other encoder is the mean over all tokens. Weights are read
    from safetensors files only and computed with in float32; code in a folder is never executed.

    Attributes:
        kind: ``transformers``.
        source: Folder or Hub name of CLIP (whole, or its text model), T5, BERT or another text
            encoder with its tokenizer, or folder of a pipeline that contains one.

    Example:
        >>> TransformersTextEncoder(source="openai/clip-vit-large-patch14").num_tokens
        77
    """

    kind: Literal["transformers"] = "transformers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ValueError(
                "text.source must be the folder or Hub name of an encoder of transformers, got none"
            )

    def load(self, device: str = "cpu", download: bool = False) -> TextModel:
        """See :meth:`edm2lite.text.encoder.TextEncoder.load`."""
        place = present(self.source)
        key = place, device, self.num_tokens
        with _LOADING:
            if key not in _LOADED:
                loaded = _load(place, device, self.num_tokens, may_download(place, download))
                for oldest in list(_LOADED)[:-1]:
                    del _LOADED[oldest]
                _LOADED[key] = loaded
            return _LOADED[key]

    def located(self) -> TransformersTextEncoder:
        """See :meth:`edm2lite.text.encoder.TextEncoder.located`."""
        return dataclasses.replace(self, source=absolute(self.source))


def _load(place: str, device: str, num_tokens: int, download: bool) -> TextModel:
    require("transformers")
    try:
        with _quietly():
            model, tokenizer = _parts(place, not download)
    except Exception as error:  # of damaged files, these packages raise whatever they come to
        raise _failed(place, download, error) from error
    longest = getattr(model.config, "max_position_embeddings", num_tokens)
    longest = min(longest, tokenizer.model_max_length)
    if num_tokens > longest:
        raise ValueError(
            f"text.num_tokens must be at most {longest} for {place}, got {num_tokens}; set a"
            " smaller one"
        )
    encoder = _Encoder(model.to(device).eval().requires_grad_(False), tokenizer, num_tokens)
    taught = WordInput(encoder.input_rows, encoder.states_with)
    return TextModel(place, _digest(model, tokenizer), encoder.states, num_tokens, taught)


class _Encoder:
    """A text encoder: from a text to its states, and from the rows of its tokens.

    Args:
        model: Encoder of transformers, on its device.
        tokenizer: Tokenizer of the model.
        num_tokens: Number of tokens after which a text is cut off.
    """

    def __init__(self, model: Any, tokenizer: Any, num_tokens: int):
        self._model, self._tokenizer, self._num_tokens = model, tokenizer, num_tokens
        self._table: Tensor = model.get_input_embeddings().weight
        self._given = threading.local()  # of a text with learned words: rows of all its tokens
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.weight is self._table:
                module.register_forward_hook(self._with_given)  # T5 has two of them

    @torch.no_grad()
    def states(self, text: str) -> TextStates:
        """The states of a text."""
        ids = self._ids(text, truncation=True, max_length=self._num_tokens)
        if not len(ids):  # nothing is left of such a text
            tokens, pooled = self.states("a")
            return TextStates(tokens[:0], pooled)
        return TextStates(*self._output(ids))

    def input_rows(self, text: str) -> Tensor:
        """See :class:`edm2lite.text.words.WordInput`."""
        rows: Tensor = self._table[self._ids(text, add_special_tokens=False)]
        return rows.cpu()

    def states_with(self, text: str, words: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`edm2lite.text.words.WordInput`."""
        whole, inner = self._ids("a"), self._ids("a", add_special_tokens=False)
        begin = whole.tolist().index(inner[0])
        start, end = whole[:begin], whole[begin + len(inner) :]
        room = self._num_tokens - len(start) - len(end)
        rows = torch.cat([*in_order(text, words, self.input_rows)])[:room].to(inner.device)
        self._given.rows, self._given.begin = rows, begin
        try:
            return self._output(torch.cat([start, inner[:1].expand(len(rows)), end]))
        finally:
            self._given.rows = None

    def _with_given(self, _module: Any, _inputs: Any, rows: Tensor) -> Tensor:
        given: Tensor | None = getattr(self._given, "rows", None)
        if given is None:
            return rows
        begin, end = self._given.begin, self._given.begin + len(given)
        return torch.cat([rows[:, :begin], given[None], rows[:, end:]], 1)

    def _ids(self, text: str, **options: Any) -> Tensor:
        found = self._tokenizer(plain(text), return_tensors="pt", **options)
        ids: Tensor = found["input_ids"][0].long().to(self._table.device)
        return ids

    def _output(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = self._model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
        tokens = found.last_hidden_state[0]
        pooled = tokens.mean(0)
        if self._model.config.model_type.startswith("clip"):
            pooled = (found.text_embeds if "text_embeds" in found else found.pooler_output)[0]
        return tokens.cpu(), pooled.cpu()


def _parts(place: str, is_local: bool) -> tuple[Any, Any]:
    """The encoder and the tokenizer of a folder or of the Hub."""
    import transformers

    folder = words = Path(place)
    if (folder / "text_encoder" / "config.json").is_file():
        folder = words = folder / "text_encoder"
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    if folder.is_dir() and beside.is_dir():  # as in a pipeline of diffusers
        words = beside
    options: dict[str, Any] = {"local_files_only": is_local, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(str(folder), **options)
    model, report = _class(config).from_pretrained(
        str(folder), **options, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    lacking = sorted(name for name in report["missing_keys"] if _is_used(name))
    if lacking:
        raise ValueError(f"its weights have no {lacking[0]}")
    return model, transformers.AutoTokenizer.from_pretrained(str(words), **options)


def _class(config: Any) -> Any:
    """The class that encodes text with the weights of a configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    if {"CLIPModel", "CLIPTextModelWithProjection"} & set(config.architectures or ()):
        return transformers.CLIPTextModelWithProjection
    if config.model_type not in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        raise ValueError(f"a model of the type {one_line(config.model_type, 60)} encodes no text")
    return transformers.AutoModelForTextEncoding


def _is_used(name: str) -> bool:
    """Whether a weight takes part; a pooler of BERT, which not all files have, does not."""
    return not name.startswith("pooler.")


def _failed(place: str, download: bool, error: Exception) -> ValueError:
    reason = one_line(error, 200)
    if not download and not Path(place).exists():
        return ValueError(
            f"the text encoder {place} must be a folder, or in the cache of the Hub since a file"
            f" names it and cannot have it downloaded; set {MOVED}={place} to download it"
            f" ({reason})"
        )
    return ValueError(
        f"the text encoder {place} must be a folder or Hub name of CLIP, T5 or another text encoder"
        f" of transformers with safetensors weights and its tokenizer; loading it failed: {reason}"
    )


def _digest(model: Any, tokenizer: Any) -> str:
    """Digest of weights, vocabulary, and how a text is cut; files of other versions may differ."""
    state = xxhash.xxh3_64()
    for name, value in sorted(model.state_dict().items()):
        if _is_used(name):
            state.update(name.encode())
            state.update(as_bytes(value.cpu().contiguous()))
    cut = tokenizer(_PROBE, truncation=True, max_length=16)["input_ids"]
    state.update(repr([sorted(tokenizer.get_vocab().items()), cut]).encode())
    return state.hexdigest()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Neither reports nor progress bars: weights of an image encoder may be left over."""
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()
