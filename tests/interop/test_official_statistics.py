"""Reference statistics of the official EDM2 code: pickles of NumPy arrays, read as data."""

import os
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from official_files import Calls, EasyDict, official_modules

from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.tools.edm2lite import main as edm2lite

SIZES = {"fid": 2048, "fd_dinov2": 1024}
NAMES = {"fid": "inception-v3-compat", "fd_dinov2": "dinov2-vit-l-14"}


def moments(size, seed=0):
    """mu [F] and sigma [F, F] as official files have them: float64."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((size, 8))
    return {"mu": rng.standard_normal(size), "sigma": factor @ factor.T + np.eye(size)}


@pytest.mark.parametrize("protocol, kind", [(4, EasyDict), (5, dict)])
def test_official_statistics_are_not_called_damaged(tmp_path, protocol, kind):
    content = kind({name: kind(moments(size)) for name, size in SIZES.items()})
    content["fid"]["sigma"] = np.asfortranarray(content["fid"]["sigma"])
    path = tmp_path / "img512.pkl"
    with official_modules():
        path.write_bytes(pickle.dumps(content, protocol))
    found = FeatureStats.load_all(path)
    assert [s.extractor for s in found] == list(NAMES.values())
    for stats, metric in zip(found, SIZES, strict=True):
        np.testing.assert_array_equal(stats.mean, content[metric]["mu"])
        np.testing.assert_array_equal(stats.cov, content[metric]["sigma"])
        chosen = FeatureStats.load(path, stats.extractor)
        assert chosen.digest == stats.digest and chosen.mean.dtype == np.float64
    references = MetricInputs.of(path, None).references
    assert [reference.is_dinov2 for reference in references] == [False, True]
    with pytest.raises(ValueError, match="name the extractor to choose one"):
        FeatureStats.load(path)
    with pytest.raises(ValueError, match="weights must be those of one extractor"):
        MetricInputs.of(path, None, weights=["inception.pth"])


def test_official_statistics_become_a_file_by_the_command(tmp_path):
    path, out = tmp_path / "img64.pkl", tmp_path / "img64.safetensors"
    path.write_bytes(pickle.dumps({"fid": moments(2048)}))
    words = ["evaluate", "stats", str(path), "--out", str(out)]
    result = CliRunner().invoke(edm2lite, words)
    assert result.exit_code == 0, result.output
    assert FeatureStats.load(out).digest == FeatureStats.load(path).digest
    result = CliRunner().invoke(edm2lite, [*words, "--extractor", "dinov2-vit-l-14"])
    assert result.exit_code == 1 and "it holds those of inception-v3-compat" in result.output


@pytest.mark.parametrize(
    "content, message",
    [
        ({"kid": 1.0}, "must hold statistics for fid or fd_dinov2, it holds kid"),
        ([1, 2], "must hold a mapping as its content, holds list"),
        ({"fid": {"mu": np.zeros(3)}}, "must hold an array of NumPy as sigma of fid, holds None"),
        ({"fid": {"mu": [0.0], "sigma": 1}}, "must hold an array of NumPy as mu of fid"),
        (
            {"fid": {"mu": np.zeros(3), "sigma": np.eye(2)}},
            r"fid: mu and sigma .* have shapes \[3\] and \[2, 2\]",
        ),
        (
            {"fid": {"mu": np.full(2, np.nan), "sigma": np.eye(2)}},
            "fid: mu and sigma .* must be finite numbers",
        ),
        (
            {"fid": {"mu": np.array([1, 2]), "sigma": np.eye(2)}},
            "must be floating-point numbers",
        ),
        ({"fid": {"mu": np.array(["a"]), "sigma": np.eye(1)}}, "must hold.*numbers as mu of fid"),
        ({"fid": Calls(os.system, "touch executed")}, "asks for posix.system.*nothing of it"),
        ({"fid": {"mu": torch.zeros(2)}}, "asks for torch._utils._rebuild_tensor_v2"),
    ],
)
def test_pickles_that_hold_something_else_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "ref.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=message) as caught:
        FeatureStats.load(path)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists() and not os.path.exists("executed")


def test_a_cut_pickle_of_statistics_is_refused(tmp_path):
    path = tmp_path / "ref.pkl"
    whole = pickle.dumps({"fid": moments(64)})
    path.write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match="is cut short or damaged"):
        FeatureStats.load(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="4 bytes follow after its end"):
        FeatureStats.load(path)
