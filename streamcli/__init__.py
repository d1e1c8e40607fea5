"""Send a prompt to a Messages endpoint and stream the answer."""

__version__ = "0.1.0"
