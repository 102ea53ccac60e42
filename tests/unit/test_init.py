"""`tenantsync init`: a skin over the function that writes the starter."""

import pytest
from click.testing import CliRunner

from tenantsync.cli.init import init
from tenantsync.config import load
from tenantsync.errors import ConfigError


def test_init_writes_the_starter(tmp_path):
    """The command is a skin over the function."""
    path = tmp_path / "my.toml"

    result = CliRunner().invoke(init, ["--path", str(path)], catch_exceptions=False)

    assert (result.exit_code, f"Wrote {path}" in result.output) == (0, True)
    assert "acme" in load(path, {}).tenants


def test_init_refuses_to_overwrite(tmp_path):
    """A second `init` ends with the sentence of the function."""
    path = tmp_path / "my.toml"
    path.write_text("mine")

    with pytest.raises(ConfigError, match="is there already"):
        CliRunner().invoke(init, ["--path", str(path)], catch_exceptions=False)
