"""Ways to damage a file: bits, bytes, lengths, and values of JSON, at random but repeatably."""

import json
import re
import struct

import xxhash

from edm2lite.tensorheader import BLANK

WORDS = [
    "null", "true", "-1", "0", "1e999", "NaN", "9" * 30, "9" * 5000, str(2**63 - 1), "0.5", '""',
    '"\\ud800"', "[]", "{}", "[[[]]]", "[" * 3000, '"x"', '{"a": 1, "a": 2}', "1e300", "-1e-320",
]  # fmt: skip


def damaged(data, rng):
    """A copy with one to three damages."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data)) if data else 0
        size = rng.randint(1, 8)
        match rng.randrange(9):
            case 0 | 1:
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << rng.randrange(8)])
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = rng.randbytes(size)
            case 5:
                data[at:at] = data[max(0, at - 40) : at]
            case 6:
                other = rng.randrange(len(data)) if data else 0
                data[at : at + size], data[other : other + size] = (
                    data[other : other + size], data[at : at + size],
                )  # fmt: skip
            case 7:  # a length or an offset
                number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
                form = rng.choice(["<Q", "<I", ">I", "<H"])
                number &= (1 << 8 * struct.calcsize(form)) - 1
                data[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 8:
                del data[at if rng.random() < 0.3 else len(data) :]
    return bytes(data)


def damaged_json(data, rng):
    """A copy of a text of JSON or YAML in which a value is another one, or bytes are damaged."""
    if rng.random() < 0.3:
        return damaged(data, rng)
    text = data.decode()
    tokens = list(re.finditer(r'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|true|false|null|\[|\]|\{|\}', text))
    for token in sorted(
        rng.sample(tokens, min(len(tokens), rng.randint(1, 2))), key=lambda t: -t.start()
    ):
        word = rng.choice([*WORDS, rng.choice(tokens)[0]])
        text = text[: token.start()] + word + text[token.end() :]
    return text.encode()


def resealed(data):
    """The file with the digests that its changed header and values have: forged, not damaged."""
    length = int.from_bytes(data[:8], "little")
    header, values = data[8 : 8 + length], data[8 + length :]
    header = re.sub(
        rb'"digest":"[0-9a-f]{32}"',
        f'"digest":"{xxhash.xxh3_128_hexdigest(values)}"'.encode(), header,
    )  # fmt: skip
    blank = re.sub(
        rb'"header_digest":"[0-9a-f]{32}"', f'"header_digest":"{BLANK}"'.encode(), header
    )
    start = len(header).to_bytes(8, "little")
    seal = xxhash.xxh3_128_hexdigest(start + blank)
    return (
        start
        + blank.replace(f'"header_digest":"{BLANK}"'.encode(), f'"header_digest":"{seal}"'.encode())
        + values
    )


def damaged_header(data, rng):
    """A safetensors file of ours with a forged header, sealed again."""
    length = int.from_bytes(data[:8], "little")
    change = damaged_json if rng.random() < 0.7 else damaged
    header = change(data[8 : 8 + length], rng)
    return resealed(len(header).to_bytes(8, "little") + header + data[8 + length :])


def damaged_metadata(data, rng):
    """A safetensors file of ours in which JSON within the metadata is damaged, sealed again."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    metadata = entries["__metadata__"]
    key = rng.choice([k for k in metadata if "digest" not in k])
    metadata[key] = damaged_json(metadata[key].encode(), rng).decode("utf-8", "replace")
    header = json.dumps(entries, separators=(",", ":")).encode()
    return resealed(len(header).to_bytes(8, "little") + header + data[8 + length :])
