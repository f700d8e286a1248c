"""Callbacks and helpers for training frameworks; each module imports its own."""
