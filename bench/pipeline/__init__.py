"""What asynchronous pipelines cost: `python -m wpadamw.bench.pipeline`, in a checkout."""
