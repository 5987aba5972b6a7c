"""Everything stands in pyproject.toml; this says what is wrong where links did not survive."""

from pathlib import Path

from setuptools import setup

for _link in sorted(Path(__file__).parent.glob("reluguard/*")):
    if _link.is_file() and not _link.suffix and not _link.is_symlink():
        raise SystemExit(
            f"expected reluguard/{_link.name} to be a link to ../{_link.name}, got a file: this "
            "copy was made without symbolic links. Allow them (Windows: developer mode), then run "
            "`git config core.symlinks true && git checkout -- reluguard`; or install a wheel."
        )

setup()
