"""Measurements of pdray and its peers; each module with a ``main`` is a command."""
