"""pdray: prefill and decode of one model in separate pools of Ray actors."""

__version__ = "0.1.0"
