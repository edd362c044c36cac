"""The one version of the whole stack."""

__version__ = "0.1.0"
