"""Where a service's database is: its configuration, else the environment, else a SQLite file."""

import os
from pathlib import Path

import sqlalchemy as sa


def database_url(service: str, given: str, password_file: Path | None, data_dir: Path) -> sa.URL:
    """URL and password of a database; both may come from the environment, for they are secrets.

    Args:
        service: Its name: `STACK_<NAME>_DATABASE` and `STACK_<NAME>_PASSWORD_FILE` are looked at.
        given: URL of the configuration; empty means none.
        password_file: File of the configuration that holds the password; None means none.
        data_dir: Where the SQLite file lies when nobody says anything.

    Raises:
        ArgumentError: If the URL is none.
        OSError: If the password's file cannot be read.
    """
    name = service.upper()
    url = sa.make_url(
        given or os.environ.get(f"STACK_{name}_DATABASE", "") or f"sqlite:///{data_dir / f'{service}.db'}"
    )
    file = password_file or os.environ.get(f"STACK_{name}_PASSWORD_FILE")
    return url.set(password=Path(file).read_text(encoding="utf-8").strip()) if file else url
