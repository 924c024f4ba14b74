"""Fixtures of the tests of sampling."""

import pytest


@pytest.fixture(scope="session")
def names(run_dir):
    """A model, and a weaker one of the same run."""
    return f"{run_dir}@sigma_rel=0.1", f"{run_dir}@sigma_rel=0.2,nimg=640"
