"""The composition root: the only place that knows every name. Settings in, a runnable daemon out."""

from orchestratord.app.daemon import Daemon, handler_table
from orchestratord.app.engines import drivers

__all__ = ["Daemon", "drivers", "handler_table"]
