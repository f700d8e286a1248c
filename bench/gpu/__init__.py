"""One command for a machine with a GPU: build, test, check, measure."""
