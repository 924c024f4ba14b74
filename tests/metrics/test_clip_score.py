"""CLIP score: the cosine that transformers computes; folders of other models are refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from text.tiny_encoders import WORDS, save_clip, save_t5

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.captions import Captions
from edm2lite.image_grid import channels_last
from edm2lite.metrics import evaluate
from edm2lite.metrics.clip_score import CLIP

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a whole CLIP with random weights, its tokenizer and its image processor."""
    from transformers import CLIPImageProcessor

    folder = save_clip(tmp_path_factory.mktemp("clip") / "clip", "CLIPModel")
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor.save_pretrained(folder)
    return folder


def captioned(num=5, channels=3):
    images = RNG.integers(0, 256, (num, channels, 12, 16), dtype=np.uint8)
    texts = [(WORDS[i % 3],) for i in range(num)]
    texts[-1] = ("x" * 10_000,)
    shape = (channels, 12, 16)
    return ImageDataset("photos", num, shape, lambda i: images[i], captions=Captions(texts))


@pytest.mark.parametrize("channels", [1, 3])
def test_clip_score_is_the_cosine_that_transformers_computes(channels, clip):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    dataset = captioned(channels=channels)
    (score,) = evaluate(dataset, metrics="clip_score", clip=clip, batch_size=2)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    process = AutoImageProcessor.from_pretrained(clip)
    cosines = []
    for i in range(5):
        picture = Image.fromarray(channels_last(dataset.read(i))).convert("RGB")
        pixels = process(images=picture, return_tensors="pt")
        words = tokenizer(
            dataset.captions.text(i), truncation=True, max_length=16, return_tensors="pt"
        )
        with torch.no_grad():
            found = model(
                input_ids=words["input_ids"], attention_mask=words["attention_mask"], **pixels
            )
        cosines.append(float(torch.cosine_similarity(found.image_embeds, found.text_embeds)))
    assert np.std(cosines) > 1e-3
    assert score.value == pytest.approx(100 * np.mean(cosines), abs=1e-4)
    low, high = score.interval
    assert low < score.value < high


def test_another_clip_has_other_rows(clip, tmp_path):
    copy = shutil.copytree(clip, tmp_path / "clip")
    assert CLIP(copy).digest == CLIP(clip).digest
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert CLIP(copy).digest != CLIP(clip).digest


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder.mkdir(), "it has no config.json"),
        (lambda folder: save_t5(folder), "it is a T5"),
        (lambda folder: save_clip(folder), "loading it failed: "),
    ],
)
def test_folders_of_other_models_are_refused_in_one_line(make, message, tmp_path):
    make(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(captioned(), metrics="clip_score", clip=tmp_path / "model")
    assert str(caught.value).startswith(
        f"{tmp_path / 'model'} must be the folder of a transformers"
    )
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="clip_score needs a CLIP, got none; give --clip"):
        evaluate(captioned(), metrics="clip_score")
