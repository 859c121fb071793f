"""What is installed: every package of the sources, also where it is no working copy."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_named_in_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    named = settings["options"]["packages"].split()
    inits = (ROOT / "tpimpi").rglob("__init__.py")
    found = [".".join(path.parent.relative_to(ROOT).parts) for path in inits]
    assert sorted(named) == sorted([*found, "tpimpi.kernels"])
