"""A rule whose moments are stored in a small format: the mathematics are those of the rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from wpadamw.formats import OF_MOMENTS, WHOLE, Format
from wpadamw.rules.around import Around
from wpadamw.rules.rule import Row, Rule


class Stored(Around):
    """A rule with formats of its state.

    Where rounding needs noise, ``Step`` has the count of the update behind all else.
    """

    def __init__(self, rule: Rule, formats: tuple[Format, ...], is_noisy: bool) -> None:
        super().__init__(rule, ("count",) if is_noisy else ())
        self.formats, self.is_noisy = formats, is_noisy

    def further(self, hyper: Row, count: Any, power: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
        """The count, of which noise is made."""
        return (count,) if self.is_noisy else ()


@functools.cache
def stored(rule: Rule, moments: str, is_noisy: bool = False) -> Rule:
    """A rule with its moments in a format: the same object for the same, as plans compare them.

    ``is_noisy``: whether parameters are rounded with noise, too.
    """
    if moments == "float32" and not is_noisy:
        return rule
    if moments not in OF_MOMENTS:
        raise ValueError(f"moments must be one of {(*OF_MOMENTS,)}, got {moments!r:.200}")
    formats = tuple(_format_of(name, rule, moments) for name in rule.state_names)
    return Stored(rule, formats, is_noisy or any(form.is_noisy for form in formats))


def _format_of(name: str, rule: Rule, moments: str) -> Format:
    if name in rule.whole_names:
        return WHOLE
    signed, square = OF_MOMENTS[moments]
    return square if name in rule.squares else signed


def formats_of(rule: Rule) -> tuple[Format, ...]:
    """How each tensor of a rule's state is stored."""
    return rule.formats if isinstance(rule, Stored) else (WHOLE,) * len(rule.state_names)


def is_noisy(rule: Rule) -> bool:
    """Whether rows have the count of an update, for noise."""
    return isinstance(rule, Stored) and rule.is_noisy


def decoded(rule: Rule) -> Rule:
    """The rule of the same rows over a state that has been decoded."""
    if not isinstance(rule, Stored):
        return rule
    return Stored(rule.rule, (WHOLE,) * len(rule.state_names), rule.is_noisy)
