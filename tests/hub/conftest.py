"""Things to push, made once."""

from pathlib import Path

import pytest
from things import make_things


@pytest.fixture(scope="session")
def things(tmp_path_factory, sen12ms_tree) -> dict[str, Path]:
    """{kind: path} of a small thing of every kind; read only."""
    return make_things(tmp_path_factory.mktemp("things"), sen12ms_tree)
