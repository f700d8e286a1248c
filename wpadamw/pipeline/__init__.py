"""Asynchronous pipeline training on torch's engine: PipeOptim (Guan et al. 2023, arXiv 2312.00839).

Every stage of a pipeline updates after every micro-batch and waits for nobody; with a prediction
by as many steps as it will make in between, a forward sees the weights that its backward will find.
"""

from wpadamw.pipeline.schedule import Async1F1B, delays
from wpadamw.pipeline.stage import AsyncStage

__all__ = ["Async1F1B", "AsyncStage", "delays"]
