"""The command line of `studyloom tune`, as its user types it again with other settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studyloom.worker.task import Command

# The options of `studyloom tune` that are settings of the study, by key.
OPTIONS = {"study.trials": "--trials", "launcher.workers": "--workers"}
SET = "--set"


@dataclass(frozen=True)
class TunedCommand(Command):
    """The command of a study that `studyloom tune` has begun.

    Args:
        options: the words that the user has typed after `studyloom tune`, before the program.
        tuned: the program and its arguments; empty for a sweep file.
    """

    options: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()

    def continue_with(self, override: str) -> list[str]:
        """Returns the words of the command line with another setting, in place of the former."""
        key, _, value = override.partition("=")
        option = [SET, override]
        if key in OPTIONS:
            option = [OPTIONS[key], value]
        return ["studyloom", "tune", *self._replace_option(key, option), *self.tuned]

    def write_settings(self, section: str, values: Mapping[str, int | bool]) -> str:
        settings = super().write_settings(section, values).split()
        return " ".join(f"{SET} {setting}" for setting in settings)

    @property
    def correction(self) -> str:
        # `studyloom tune` moves a study without any value aside, so that no --name is needed.
        return "if a name or an argument is wrong, type the same command with the right one"

    def _replace_option(self, key: str, option: Sequence[str]) -> list[str]:
        """Returns the options with another one in place of those that set a key, or at the end.

        They are such as `--trials 8`, `--trials=8` or `--set study.trials=8`.
        """
        options: list[str] = []
        place = None
        remaining_options = iter(self.options)
        for typed in remaining_options:
            name, equals, value = typed.partition("=")
            typed_option = [typed]
            if not equals and name in (*OPTIONS.values(), SET):
                value = next(remaining_options, "")
                typed_option.append(value)
            sets_key = name == OPTIONS.get(key)
            if name == SET:
                sets_key = value.partition("=")[0] == key
            if not sets_key:
                options += typed_option
            elif place is None:
                place = len(options)
        if place is None:
            place = len(options)
        return [*options[:place], *option, *options[place:]]
