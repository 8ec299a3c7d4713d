"""A benchmark harness for language-model editing."""

__version__ = "0.1.0"
