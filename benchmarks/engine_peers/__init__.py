"""Engines that benchmarks/engine.py compares, each in a process and, for vLLM, in an environment
of its own: so this package's shared files need nothing but Python."""
