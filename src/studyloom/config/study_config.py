"""The config of a study, as everything beyond this layer gets it.

Hydra composes one from YAML and a command line. Its values are plain Python, and interpolations are
resolved. The config of a trial is the study's with other values at some keys.
"""

import functools
import pickle
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.references import Reference, connect, find_references, is_within, overlap
from studyloom.config.schema import (
    SCHEMA,
    CheckpointsSection,
    CostSection,
    ObjectiveSection,
    StorageSection,
    StudySection,
    TrainSection,
    WinnerSection,
)
from studyloom.config.values import (
    copy_value,
    describe_error,
    node_at,
    unresolved,
    value_at,
    with_values,
    written_values,
)
from studyloom.errors import ConfigError

Section = TypeVar("Section")
SECTIONS = {
    "study": StudySection,
    "objective": ObjectiveSection,
    "train": TrainSection,
    "storage": StorageSection,
    "checkpoints": CheckpointsSection,
    "winner": WinnerSection,
    "cost": CostSection,
}


def _read_key_types() -> dict[str, tuple[object, ...]]:
    """Returns the types that the value of each key may have, such as (float, None) by key.

    Keys of the type Any are left out.
    """
    types = {}
    for section, section_class in SECTIONS.items():
        for key in fields(section_class):
            if key.type is Any:
                continue
            union_members = typing.get_args(key.type)  # empty for a single type
            types[f"{section}.{key.name}"] = union_members or (key.type,)
    return types


KEY_TYPES = _read_key_types()


@dataclass(frozen=True, eq=False)
class StudyConfig(Mapping[str, Any]):
    """The config of a study or of one of its trials; it is never changed.

    As a mapping it has all sections as plain values. Sections with a fixed set of keys are
    attributes with types too, such as `config.train.epochs`.

    Args:
        written: the sections with interpolations, as run directories keep them.
        resolved: the same sections with the values of the interpolations.
        references: the interpolations.
        base: the config from which `with_values` made this one; None if it did not.
        changes: the values that it has set in the base, by key.
    """

    written: Mapping[str, Any]
    resolved: Mapping[str, Any]
    references: Sequence[Reference]
    base: "StudyConfig | None" = None
    changes: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig) -> "StudyConfig":
        """Reads a config that Hydra has composed, and resolves its interpolations."""
        written = written_values(config)
        written.pop("hydra", None)
        references = find_references(written)
        resolved = copy_value(written)
        for reference in references:
            _set(resolved, reference, _resolve(config, reference))
        return cls(written, resolved, references)

    @classmethod
    def of_trial(cls, sections: Mapping[str, object]) -> "StudyConfig":
        """Makes a config of the sections that a trial stored.

        Keys of `train` and `objective` that it lacks, as an earlier version did, have their
        defaults.

        Raises:
            ConfigError: a value does not have the type of its key.
        """
        defaults = {"train": SCHEMA.train, "objective": SCHEMA.objective}
        try:
            config = OmegaConf.merge(defaults, dict(sections))
        except OmegaConfBaseException as error:
            reason = f"the configuration that the trial stored: {describe_error(error)}"
            raise ConfigError([reason]) from None
        assert isinstance(config, DictConfig)
        return cls.of(config)

    def __getitem__(self, section: str) -> Any:
        return self.resolved[section]

    def __iter__(self) -> Iterator[str]:
        return iter(self.resolved)

    def __len__(self) -> int:
        return len(self.resolved)

    # Sections of studyloom's own keys

    @functools.cached_property
    def run_dir(self) -> str:
        """The folder of all that a run writes."""
        return str(value_at(self, "run_dir"))

    @functools.cached_property
    def study(self) -> StudySection:
        """The study and its budget."""
        return self._typed("study", StudySection)

    @functools.cached_property
    def objective(self) -> ObjectiveSection:
        """The objective of a trial, without the arguments of its target."""
        return self._typed("objective", ObjectiveSection)

    @functools.cached_property
    def train(self) -> TrainSection:
        """How a network is trained."""
        return self._typed("train", TrainSection)

    @functools.cached_property
    def storage(self) -> StorageSection:
        """The database of the study."""
        return self._typed("storage", StorageSection)

    @functools.cached_property
    def checkpoints(self) -> CheckpointsSection:
        """Where trials save their state."""
        return self._typed("checkpoints", CheckpointsSection)

    @functools.cached_property
    def winner(self) -> WinnerSection:
        """How the winner is chosen."""
        return self._typed("winner", WinnerSection)

    @functools.cached_property
    def cost(self) -> CostSection:
        """The price of computing."""
        return self._typed("cost", CostSection)

    def _typed(self, name: str, section_class: type[Section]) -> Section:
        """Returns a section as an object of its class.

        The arguments of an objective's target, which its class has no fields for, are left out.
        """
        section = value_at(self, name)
        values = {}
        for key in section_class.__dataclass_fields__:  # type: ignore[attr-defined]
            if key in section:
                values[key] = section[key]
        return section_class(**values)

    # Other values

    def with_values(self, values: Mapping[str, object]) -> "StudyConfig":
        """Returns this config with other values at some keys.

        If `model.width` is written as `${params.width}`, then {"params.width": 8} changes both
        values. {"model.width": 8} replaces the interpolation. A text such as "${x}" among the
        values stays a text.

        Raises:
            ValidationError: a value does not have the type of its key.
        """
        typed_values = {key: _with_type(key, value) for key, value in values.items()}
        escaped_values = {key: _escape(value) for key, value in typed_values.items()}
        references = []  # the interpolations that no new value replaces
        for reference in self.references:
            if not _is_within_any(reference.key, values):
                references.append(reference)
        changes = {}  # the changes since the base, which `for_user` repeats
        for key, value in self.changes.items():
            if not _is_within_any(key, values):
                changes[key] = value
        changes.update(escaped_values)
        changed = StudyConfig(
            written=with_values(self.written, escaped_values),
            resolved=with_values(self.resolved, typed_values),
            references=references,
            base=self.base or self,
            changes=changes,
        )
        return changed._with_references_updated(values)

    def with_sections(self, configs: Mapping[str, "StudyConfig"]) -> "StudyConfig":
        """Returns this config with some sections as other configs have them.

        Args:
            configs: the config from which a section is taken, by the section's name.
        """
        written = dict(self.written)
        resolved = dict(self.resolved)
        references = []
        for reference in self.references:
            if reference.section not in configs:
                references.append(reference)
        for section, config in configs.items():
            written[section] = config.written[section]
            resolved[section] = config.resolved[section]
            for reference in config.references:
                if reference.section == section:
                    references.append(reference)
        # An interpolation in one section may follow a key of a section that was replaced. So the
        # keys that it follows through others are found again, and then its value.
        merged = StudyConfig(written, resolved, connect(references))
        return merged._with_references_updated(configs)

    def differs_only_in(self, section: str, other: "StudyConfig") -> bool:
        """Returns whether all sections but one are written as in another config."""
        written = dict(self.written)
        written.pop(section, None)
        other_written = dict(other.written)
        other_written.pop(section, None)
        return written == other_written

    def _with_references_updated(self, keys: Iterable[str]) -> "StudyConfig":
        """Returns this config with new values for the references that follow some keys.

        Args:
            keys: the keys, or sections, whose values have just changed.
        """
        stale_references = []
        for reference in self.references:
            if reference.is_changed_by(keys):
                stale_references.append(reference)
        if not stale_references:
            return self
        new_values = self._resolve_again(stale_references)
        resolved = self.resolved
        for reference, value in zip(stale_references, new_values, strict=True):
            key = reference.key
            if reference.is_in_list:
                resolved = _with_copied_list(resolved, list_key=key)
                _set(resolved, reference, value)  # in the copy: other configs share the list
            else:
                resolved = with_values(resolved, {key: _with_type(key, value)})
        return replace(self, resolved=resolved)

    def _resolve_again(self, stale_references: Sequence[Reference]) -> list[object]:
        """Returns the new values of references whose values in `resolved` are out of date.

        A reference such as `${train.epochs}` has the value of that key, unless this value is stale
        too. If any reference is another expression, or follows a stale value, OmegaConf resolves
        all of them, which takes longer.
        """
        stale_keys = [reference.key for reference in stale_references]
        source_keys: list[str] = []
        needs_omegaconf = False
        for reference in stale_references:
            source_key = reference.source  # None for an expression other than a key
            if source_key is None or any(overlap(source_key, key) for key in stale_keys):
                needs_omegaconf = True
            else:
                source_keys.append(source_key)
        if needs_omegaconf:
            config = OmegaConf.create(dict(self.written))
            return [_resolve(config, reference) for reference in stale_references]
        return [value_at(self.resolved, source_key) for source_key in source_keys]

    def for_user(self, **values: object) -> Any:
        """Returns a read-only config of OmegaConf, as the user's own functions get it.

        Its keys are attributes and items, such as `config.model.hidden`.

        Args:
            values: further keys at its top.
        """
        base = self.base or self
        config = pickle.loads(base._pickled)  # the fastest copy of the config before the changes
        for key, value in {**self.changes, **values}.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        OmegaConf.set_readonly(config, True)
        return config

    @functools.cached_property
    def _pickled(self) -> bytes:
        """A config of OmegaConf as bytes: a copy takes 2 ms from these, and 20 ms from a dict."""
        config = OmegaConf.create(dict(self.written))
        OmegaConf.set_struct(config, True)
        return pickle.dumps(config)


def _is_within_any(key: str, sections: Iterable[str]) -> bool:
    return any(is_within(key, section) for section in sections)


def _resolve(config: DictConfig, reference: Reference) -> object:
    """Returns the value of a reference as plain Python.

    A reference without a value, such as one to an unset variable, gets an `Unresolved`, which
    raises an error only when it is read.
    """
    try:
        node: Any = config
        for part in reference.path:
            node = node[part]
        if OmegaConf.is_config(node):
            node = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        return unresolved(reference.text, str(error).partition("\n")[0])
    return node


def _with_copied_list(sections: Mapping[str, object], list_key: str) -> dict[str, object]:
    """Returns sections with a copy of one list, and of the sections that lead to it."""
    shared_list = node_at(sections, list_key)
    return with_values(sections, {list_key: shared_list})  # copies each value that it sets


def _set(sections: Any, reference: Reference, value: object) -> None:
    """Sets the value of a reference in place, in sections that no other config may share."""
    *container_path, last = reference.path  # names of sections, and positions in lists
    container = sections
    for part in container_path:
        container = container[part]
    container[last] = value


def _with_type(key: str, value: object) -> object:
    """Converts a value to the type of its key as Hydra does, such as 1 to 1.0 for a float.

    Returns:
        The converted value. A value that has the type is returned unchanged, and so are an
        interpolation, and the value of a key without a fixed type.

    Raises:
        ValidationError: the value cannot be converted.
    """
    types = KEY_TYPES.get(key)
    if types is None or type(value) in types or "${" in str(value):
        return value
    section, _, name = key.partition(".")
    typed_section = _copy_typed_section(section)
    OmegaConf.update(typed_section, name, value)  # converts it
    converted: object = copy_value(typed_section[name])
    return converted


@functools.cache
def _copy_typed_section(section: str) -> DictConfig:
    """Returns a copy of a section of the schema, in which values are set to convert them."""
    copy: DictConfig = SCHEMA[section].copy()
    return copy


def _escape(value: object) -> object:
    """Returns a value in which OmegaConf reads `${` as a text, and not as an interpolation."""
    if isinstance(value, Mapping):
        return {name: _escape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    if isinstance(value, str):
        return value.replace("${", r"\${")
    return value
