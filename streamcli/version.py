"""The version of the package: the only place to change it; `make docs` gives it to the manuals."""

__version__ = "0.2.0"
