"""Run by test_evaluate under torchrun: what `edm2lite evaluate` prints, into files of rank 0."""

import os
import sys
from pathlib import Path

from click.testing import CliRunner

from edm2lite.tools.edm2lite import main as edm2lite


def evaluate(folder: Path, sources: list[str], out: Path) -> None:
    """Statistics of the digits, then the metrics of each source; ``folder`` has what they need."""
    weights, reference = folder / "classifier.safetensors", folder / "reference.safetensors"
    begin = ["stats", "digits", "--extractor", "digits", "--weights", weights]
    commands = {"stats": [*begin, "--out", out / "stats.safetensors"]}
    for i, source in enumerate(sources):
        what = [source, "--ref", reference, "--weights", weights, "--cache", out / "cache"]
        commands[f"score{i}"] = [*what, "--metrics", "fid,kid,prc", "--num", 300, "--steps", 2]
    for name, arguments in commands.items():
        result = CliRunner().invoke(edm2lite, ["evaluate", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        if os.environ.get("RANK", "0") == "0":
            (out / f"{name}.txt").write_text(result.stdout)


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]))
