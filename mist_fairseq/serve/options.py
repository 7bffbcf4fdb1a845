"""Command-line options that the environment gives, too: ``--max-batch`` is ``MIST_MAX_BATCH``."""

import argparse
import os
import re
from typing import Any

_PREFIX = "MIST_"
_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


class Several(argparse.Action):
    """An option that may be given several times; what the environment gives is then forgotten."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Add a value."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])


class Parser(argparse.ArgumentParser):
    """Takes the defaults of its arguments from the environment, so that the command line wins.

    A variable's name is the argument's, in capitals. It holds several values with white space between them, and 1 or 0
    for a switch.
    """

    def __init__(self, **settings: Any):
        self.variables: dict[str, argparse.Action] = {}  #: by their names
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument, which the environment may give, too."""
        action = super().add_argument(*names, **settings)
        if action.dest != "help":
            self.variables[_PREFIX + action.dest.upper()] = action
        return action

    def parse_args(self, args=None, namespace=None):
        """Parse a command line; a value of the environment that is none ends the program, as one of an option does."""
        for variable, action in self.variables.items():
            if variable in os.environ:
                action.default = self._value(variable, action)
        return super().parse_args(args, namespace)

    def _value(self, variable: str, action: argparse.Action) -> Any:
        text = os.environ[variable]
        if isinstance(action, argparse.BooleanOptionalAction):
            if text.lower() not in _SWITCH:
                self.error(f"{variable} is {text!r}, expected 1 or 0")
            return _SWITCH[text.lower()]
        if isinstance(action, Several):
            return text.split()
        if action.type is None:
            return text
        try:
            return action.type(text)  # type: ignore[operator] # no name of a registered type
        except ValueError:
            self.error(f"{variable} is {text!r}, expected {getattr(action.type, '__name__', action.type)}")

    def blame(self, message: str, given: argparse.Namespace) -> str:
        """The message about values that cannot work, and which of those that it names the environment gave."""
        used = [
            variable
            for variable, action in self.variables.items()
            if variable in os.environ
            and getattr(given, action.dest) is action.default
            and _names(message, action.dest, action.dest.replace("_", "-"), os.environ[variable])
        ]
        return f"{message} (of the environment: {', '.join(used)})" if used else message


def _names(message: str, *words: str) -> bool:
    return any(word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words)
