"""The version of the distribution."""

from importlib import metadata


def version() -> str:
    """Version of the installed distribution; `0+source` when running from a checkout that is not installed."""
    try:
        return metadata.version("llama-stack-mesh")
    except metadata.PackageNotFoundError:
        return "0+source"
