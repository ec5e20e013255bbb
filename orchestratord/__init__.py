"""orchestratord: a contract-first HTTP daemon between agents and local LLM engines."""

__version__ = "0.1.0"
