"""Bananas: the shared vocabulary, the queue in Redis and the command line.

This package imports neither ``gateway`` nor ``runner``; both import it.
"""

__version__ = "0.1.0"
