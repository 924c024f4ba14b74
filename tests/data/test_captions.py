"""Captions: read from every form, carried by conversion, drawn per sample, refused in one line."""

import json
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.dataset import ImageDataset, open_collection, open_dataset
from edm2lite.dataset.captions import Captions
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images
from edm2lite.network.conditions import Vector
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.data import BatchSource

NAMES = ["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"]
TEXTS = [("a cat", "ein Kater"), ("\u732b",), (), ("dog \U0001f415", "\u05db\u05dc\u05d1")]


def run(*words, code=0):
    result = CliRunner().invoke(edm2lite, ["dataset", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def images(folder):
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / name)
    return folder


def as_table(folder):
    pairs = [[name, list(texts)] for name, texts in zip(NAMES, TEXTS, strict=True) if texts]
    (folder / "dataset.json").write_text(json.dumps({"captions": pairs}))
    return folder


def as_metadata(folder):
    """Hugging Face's form: one file at the top, and one in a folder; a text or a list of texts."""
    rows = [{"file_name": "cat/0.png", "text": TEXTS[0]}, {"file_name": NAMES[1], "text": "\u732b"}]
    rows += [{"file_name": NAMES[2], "text": " ", "width": 8}, {"width": 8}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    row = json.dumps({"file_name": "3.png", "caption": TEXTS[3]}, ensure_ascii=False)
    (folder / "dog" / "metadata.jsonl").write_text(f"\ufeff{row}\r\n\r\n", encoding="utf-8")
    return folder


def as_text_files(folder):
    for name, texts in zip(NAMES, TEXTS, strict=True):
        if texts:
            path = (folder / name).with_suffix(".txt")
            path.write_text("\r\n".join(["", *texts, ""]), encoding="utf-8", newline="")
    (folder / "README.txt").write_text("of no image")
    return folder


def as_zip(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as file:
        for path in as_text_files(folder).rglob("*.*"):
            file.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


FORMS = [as_table, as_metadata, as_text_files, as_zip]


@pytest.mark.parametrize("form", FORMS)
def test_captions_of_every_form_are_read_and_converted_alike(form, tmp_path):
    source = form(images(tmp_path / "a"))
    dataset = open_dataset(source)
    assert list(dataset.captions.texts) == TEXTS
    for dest in ("b", "c.zip"):
        assert "4 images" in run("convert", source, tmp_path / dest)
        converted = open_dataset(tmp_path / dest)
        assert list(converted.captions.texts) == TEXTS
        assert (converted.table is None) == (form is as_table)
    again = open_dataset(tmp_path / "c.zip")
    run("convert", tmp_path / "c.zip", tmp_path / "d", "--mirror")
    assert list(open_dataset(tmp_path / "d").captions.texts) == [t for t in TEXTS for _ in "ab"]
    assert list(again.captions.rows([3, 0]).texts) == [TEXTS[3], TEXTS[0]]
    run("convert", source, tmp_path / "e", "--no-captions")
    assert open_dataset(tmp_path / "e").captions is None


@pytest.mark.parametrize("key", ["text", "caption"])
def test_lists_have_a_column_of_captions(key, tmp_path):
    images(tmp_path)
    text = f'path,label,{key}\n{NAMES[0]},cat,"a cat, ""sitting"""\n{NAMES[3]},dog,\n'
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert open_collection(tmp_path / "a.csv").captions.texts == [('a cat, "sitting"',), ()]
    rows = [{"path": name, key: list(texts)} for name, texts in zip(NAMES, TEXTS, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_collection(tmp_path / "a.jsonl").captions.texts == TEXTS
    assert open_collection(tmp_path / "a.jsonl", captions=False).captions is None


def test_the_table_comes_first_and_then_the_metadata(tmp_path):
    as_text_files(as_metadata(images(tmp_path)))
    (tmp_path / "cat" / "0.txt").write_text("another")
    assert open_dataset(tmp_path).captions.texts[0] == TEXTS[0]
    (tmp_path / "dataset.json").write_text('{"captions": [["cat\\\\0.png", "a table"]]}')
    assert open_dataset(tmp_path).captions.texts == [("a table",), (), (), ()]
    (tmp_path / "dataset.json").write_text('{"captions": []}')
    assert open_dataset(tmp_path).captions is None


def test_long_captions_in_any_script_are_kept_shown_and_drawn(tmp_path):
    texts = [
        "x" * 10_000,
        "\U0001f9d1\u200d\U0001f680 " * 800,
        "\u0645\u0631\u062d\u0628\u0627 " * 9,
    ]
    texts.append("\x01\x1b[31m\u202e\u2028\ud7ff\U0010ffff")
    for name, text in zip(NAMES, texts, strict=True):
        path = (images(tmp_path / "a") / name).with_suffix(".txt")
        path.write_text(text, encoding="utf-8")
    run("convert", tmp_path / "a", tmp_path / "b")
    assert open_dataset(tmp_path / "b").captions.texts == [(text.strip(),) for text in texts]
    info = run("info", tmp_path / "b")
    assert "captions: 4 of 4 images, 1 each, of " in info and " to 10000 characters" in info
    assert len(info.splitlines()) < 12
    assert "4 images in" in run("verify", tmp_path / "b")
    for source in ("a", "b"):
        run("preview", tmp_path / source, "--out", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 + 4 * 134, 6 + 128 + 16 * 4 + 6)  # class, and three lines
        below = np.asarray(sheet.convert("L"))[128 + 16 + 6 :]
    for i in range(4):  # something is drawn below each, and between them nothing
        assert (below[:, 6 + 134 * i :][:, :128] < 128).any()
        assert (below[:, 134 * i : 134 * i + 4] == 255).all()


def test_images_without_captions_are_counted(tmp_path):
    as_table(images(tmp_path))
    assert "note: 1 images have no caption" in run("verify", tmp_path)
    assert "captions: 3 of 4 images, 1 to 2 each, of 1 to 9 characters (median 5)" in run(
        "info", tmp_path
    )


BAD_TEXTS = [
    ("x" * 20_001, "must have at most 20000 characters in all, got 20001; shorten"),
    (["x" * 20_000, "y"], "must have at most 20000 characters in all, got 20001; shorten"),
    ("a\0b", "must be text in UTF-8, found a NUL character; correct"),
    ("a\ud800b", "must be text in UTF-8, found half of a surrogate pair; correct"),
    (3, "must be a text or a list of texts, got 3"),
    (["a", {"b": 1}], "must be a text or a list of texts, got names and values"),
    ({"de": "Katze"}, "must be a text or a list of texts, got names and values"),
]


@pytest.mark.parametrize("text, message", BAD_TEXTS)
@pytest.mark.parametrize("form", ["dataset.json", "metadata.jsonl", "list.jsonl"])
def test_unusable_captions_are_refused_in_one_line(form, text, message, tmp_path):
    content = {
        "dataset.json": {"captions": [[NAMES[1], text]]},
        "metadata.jsonl": {"file_name": NAMES[1], "text": text},
        "list.jsonl": {"path": NAMES[1], "text": text},
    }[form]
    (images(tmp_path) / form).write_text(json.dumps(content))
    source = tmp_path / form if form == "list.jsonl" else tmp_path
    with pytest.raises(ValueError, match=f"captions of {NAMES[1]} in {source} {message}") as caught:
        open_collection(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert open_collection(source, captions=False).captions is None


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("dataset.json", b'{"captions": {"a": 1}}', "a list of .name, .text, ..... pairs"),
        ("dataset.json", b'{"captions": [["a.png"]]}', "a list of .name, .text, ..... pairs"),
        ("dataset.json", b'{"captions": [[1, "a"]]}', "a list of .name, .text, ..... pairs"),
        ("metadata.jsonl", b'{"text": "a"}', "line 1 of metadata.jsonl .* its file_name is None"),
        ("dog/metadata.jsonl", b"\n{", "line 2 of dog/metadata.jsonl in .* must be like"),
        ("metadata.jsonl", b'{"file_name": "x.png", "text": "a"}', "x.png and all others do not"),
        ("metadata.jsonl", b"\xff\xfe{", "text in UTF-8, and is not from byte 0 on; save it as"),
        ("cat/0.txt", "Kätzchen".encode("latin1"), "cat/0.txt in .* is not from byte 1 on; save"),
        ("cat/0.txt", bytes(2**18 + 1), "cat/0.txt in .* at most 262144 bytes"),
    ],
)
def test_damaged_lists_of_captions_are_explained(name, content, message, tmp_path):
    (images(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_latents_keep_the_captions_of_their_images(squares, vae, tmp_path):
    from data.encoding import encode

    run("convert", squares, tmp_path / "a", "--mirror")
    table = json.loads((tmp_path / "a" / "dataset.json").read_text())
    table["captions"] = [[name, f"photo {i}"] for i, (name, _) in enumerate(table["labels"])][1:]
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(table))
    encode(tmp_path / "a", tmp_path / "latents", vae)
    expected = [(), *((f"photo {i}",) for i in range(1, 48))]
    assert list(open_dataset(tmp_path / "latents").captions.texts) == expected
    assert "captions: 47 of 48 images" in run("info", tmp_path / "latents")
    table["captions"][0][1] = "another"
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="it differs in images"):
        encode(tmp_path / "a", tmp_path / "latents", vae)
    file = tmp_path / "latents" / "captions.json"
    file.write_text(file.read_text().replace("photo 5", "photo 6"))
    with pytest.raises(ValueError, match="captions.json must hold .* missing or altered; encode"):
        open_dataset(tmp_path / "latents")


def told(num_images=6, captions=3):
    """Images that are told which caption was drawn, twice."""
    texts = Captions([tuple(f"{i}.{k}" for k in range(captions)) for i in range(num_images)])
    blank = ImageDataset(
        "blank", num_images, (1, 4, 4), lambda i: np.zeros((1, 4, 4), np.uint8), captions=texts
    )

    def chosen(index, draw):
        image, _, caption = texts.text(index, draw).partition(".")
        return [float(image), float(caption)]

    dataset = blank.with_condition(Vector("first", 2), chosen, is_random=True)
    return dataset.with_condition(Vector("second", 2), chosen, is_random=True)


def test_without_draws_the_first_caption_is_taken():
    told_of = told().conditioning([5, 0])
    assert told_of["first"].tolist() == [[5, 0], [0, 0]]
    drawn = told().conditioning([5, 0], draws=[0.34, 0.999])
    assert drawn["first"].tolist() == [[5, 1], [0, 2]] and drawn["second"].equal(drawn["first"])


def test_a_caption_is_drawn_for_each_sample_by_seed_and_position():
    def captions(seed, batch_size, microbatch, rank=0, world_size=1, texts=3):
        source = BatchSource(
            told(captions=texts), seed=seed, batch_size=batch_size, microbatch=microbatch,
            rank=rank, world_size=world_size,
        )  # fmt: skip
        parts = [part for nimg in range(0, 240, batch_size) for part in source.batch(nimg)]
        source.close()
        assert all(p.conditioning["first"].equal(p.conditioning["second"]) for p in parts)
        rows = np.concatenate([part.conditioning["first"].numpy() for part in parts])
        return np.concatenate([part.indices for part in parts]), rows, parts

    positions, whole, parts = captions(0, 240, 240)
    assert positions.tolist() == list(range(240))
    counts = np.bincount(whole[:, 1].astype(int))
    assert len(counts) == 3 and counts.min() > 80 - 4 * np.sqrt(240 * 2 / 9)
    assert {(i, k) for i, k in whole.astype(int).tolist()} == {
        (i, k) for i in range(6) for k in range(3)
    }
    for batch_size, microbatch, world_size in ((24, 10, 1), (48, 7, 2)):
        for rank in range(world_size):
            indices, rows, _ = captions(0, batch_size, microbatch, rank, world_size)
            assert (rows == whole[indices]).all()
    assert not (captions(1, 240, 240)[1] == whole).all()
    _, _, plain = captions(0, 240, 240, texts=1)
    assert plain[0].noise.equal(parts[0].noise) and plain[0].z.equal(parts[0].z)


def test_captions_of_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="each of its 2 images .*, got 1"):
        ImageDataset("x", 2, (1, 4, 4), lambda i: None, captions=Captions([("a",)]))


def test_conversion_of_a_collection_carries_the_license(tmp_path):
    as_table(images(tmp_path / "a"))
    table = json.loads((tmp_path / "a" / "dataset.json").read_text())
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({**table, "license": "CC0"}))
    convert_images(open_collection(tmp_path / "a"), tmp_path / "b", Conversion())
    assert json.loads((tmp_path / "b" / "dataset.json").read_text())["license"] == "CC0"
    (tmp_path / "a" / "dataset.json").write_text('{"license": 3}')
    with pytest.raises(ValueError, match="license in dataset.json of .* must be a text, got 3"):
        open_collection(tmp_path / "a")
