"""``python -m wpadamw bench``: time a step of WPAdamW, of torch's AdamW and of other packages."""

from wpadamw.bench.speed.run import add_arguments, run

__all__ = ["add_arguments", "run"]
