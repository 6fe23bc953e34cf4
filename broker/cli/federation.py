"""The federation's config file, as commands take it."""

from pathlib import Path

from broker.app.settings import load_federation
from broker.cli.errors import CommandError
from broker.errors import ConfigError
from broker.world.federation import Federation


def read_federation(config: Path | None) -> Federation:
    """What the file says; without one nothing is said. Raises: CommandError."""
    try:
        return load_federation(config) if config else Federation()
    except ConfigError as error:
        raise CommandError(str(error)) from error
