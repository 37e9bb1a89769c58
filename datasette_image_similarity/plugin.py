"""The Datasette hooks, and nothing else."""

from __future__ import annotations

import click
from datasette import hookimpl


@hookimpl
def register_commands(cli: click.Group) -> None:
    from .cli import image_similarity

    cli.add_command(image_similarity)
