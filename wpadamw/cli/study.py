"""``python -m wpadamw study``: AdamW against weight prediction and its relatives, several seeds."""

from wpadamw.bench.study.run import add_arguments, run

__all__ = ["add_arguments", "run"]
