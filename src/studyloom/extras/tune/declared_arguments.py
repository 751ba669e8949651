"""The arguments that a script declares, with their defaults: read from its syntax, never executed.

Declarations are calls of argparse's `add_argument`, decorators `click.option`, parameters of typer
commands, fields of dataclasses, the config of a Hydra application, and constants that a
configurator sets. Modules of the project that the script imports are read too.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml  # type: ignore[import-untyped]

MAX_FILES = 50  # of the project that are read
# Modules and names by which a script reads its command line.
READERS = re.compile(
    r"\b(argparse|click|typer|fire|absl|docopt|hydra|tyro|tap|jsonargparse|simple_parsing|optparse"
    r"|getopt|configargparse|plac|pyrallis|draccus|cyclopts|defopt|sys\.argv|argv|HfArgumentParser"
    r"|LightningCLI|from_cli|exec|environ|getenv)\b"
)
WANDB = re.compile(r"\bwandb\b|\bWandbLogger\b")
TYPES: Mapping[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class DeclaredArgument:
    """An argument that a script declares.

    Attributes:
        names: how a command line may name it, such as --lr and -l; a key of a Hydra config.
        default: its default; None if there is none, or if the syntax does not show it.
        type: int, float, str or bool; None if it is unknown.
        flag: for an option without a value, the words that set it: (--amp,), or also the one that
            unsets it: (--amp, --no-amp). Empty for others.
        place: where it is declared, such as "train.py, line 12".
        parser: the variable of the argparse parser that has it; "" for others.
    """

    names: tuple[str, ...]
    default: object
    type: type | None
    flag: tuple[str, ...]
    place: str
    parser: str = ""


@dataclass(frozen=True)
class Constant:
    """A constant at the top of a module, such as LR = 0.1, and its line."""

    value: object
    line: int


@dataclass
class ScriptArguments:
    """All arguments that a script and the modules of its project declare.

    Attributes:
        reads_arguments: whether anything in the modules may read a command line.
        constants: the constants of the script, by name.
        parsers: the variable of the parser of each subcommand, by the subcommand's name.
        is_configured: whether --key=value sets constants of the script, as by nanoGPT's
            configurator.py.
        uses_wandb: whether the script or a module of its project names W&B's package.
    """

    declared: list[DeclaredArgument] = field(default_factory=list)
    reads_arguments: bool = False
    constants: dict[str, Constant] = field(default_factory=dict)
    parsers: dict[str, str] = field(default_factory=dict)
    is_configured: bool = False
    uses_wandb: bool = False

    def find(self, name: str, command_line: Sequence[str] = ()) -> DeclaredArgument | None:
        """Returns the declaration of an argument; None if there is none, or if it is ambiguous.

        Args:
            name: as on a command line, such as --lr.
            command_line: its words. If several subcommands declare the argument, the one
                among the words counts.
        """
        candidates = []
        for argument in self.declared:
            if _normalize(name) in {_normalize(other) for other in argument.names}:
                candidates.append(argument)
        chosen_parsers = {self.parsers[word] for word in command_line if word in self.parsers}
        of_subcommand = []
        for argument in candidates:
            if argument.parser in chosen_parsers:
                of_subcommand.append(argument)
        if of_subcommand:
            candidates = of_subcommand
        # The same argument may be declared twice, such as for training and evaluation.
        if len({(repr(argument.default), argument.flag) for argument in candidates}) == 1:
            return candidates[0]
        return None

    def declares(self, option: str) -> bool:
        """Returns True if an argument has the name of an option, or a longer one.

        argparse takes --trial for --trials.
        """
        for argument in self.declared:
            for name in argument.names:
                if _normalize(name).startswith(_normalize(option)):
                    return True
        return False

    def is_of_subcommand(self, argument: DeclaredArgument) -> bool:
        """Returns True if an argument must follow the name of a subcommand."""
        return argument.parser in self.parsers.values()


def _normalize(name: str) -> str:
    """Returns the name of an argument without dashes: weight_decay for --weight-decay."""
    return name.lstrip("-+").replace("-", "_")


def read_arguments(script: Path, command_line: Sequence[str] = ()) -> ScriptArguments:
    """Reads the arguments that a script declares, and those of the local modules that it imports.

    A file that is no valid Python declares nothing.

    Args:
        command_line: the arguments of the script. A Python file among them sets the constants of a
            script that a configurator sets.
    """
    arguments = ScriptArguments()
    for path in _find_modules(script):
        source = path.read_text(encoding="utf-8", errors="replace")
        if WANDB.search(source) is not None:
            arguments.uses_wandb = True
        with suppress(SyntaxError, ValueError):  # a ValueError: it has a zero byte
            _ModuleReader(path, source, arguments).read(is_script=path == script)
    for word in command_line:
        file = Path(word)
        if arguments.is_configured and file.suffix == ".py" and file.is_file():
            with suppress(SyntaxError, ValueError):
                source = file.read_text(encoding="utf-8", errors="replace")
                _ModuleReader(file, source, arguments).declare_constants()
    return arguments


def _find_modules(script: Path) -> list[Path]:
    """Returns a script and the modules that it imports from its folder or the current one."""
    modules = [script]
    for path in modules:  # which grows
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except (SyntaxError, ValueError):
            continue
        for name in _list_imports(tree):
            for folder in (path.parent, script.parent, Path.cwd()):
                module = folder.joinpath(*name.split("."))
                for file in (module.with_suffix(".py"), module / "__init__.py"):
                    is_new = file.is_file() and file not in modules
                    if is_new and len(modules) < MAX_FILES:
                        modules.append(file)
    return modules


def _list_imports(tree: ast.Module) -> Iterator[str]:
    """Yields the names of the modules that a module may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module else alias.name


class _ModuleReader:
    """Reads the declarations of one module.

    Args:
        path: its file.
        source: its text.
        arguments: gets what is found.
    """

    def __init__(self, path: Path, source: str, arguments: ScriptArguments) -> None:
        self.path = path
        self.source = source
        self.tree = ast.parse(source)
        self.arguments = arguments
        self.constants = self._read_constants()
        self.run_functions = self._list_functions_run_by_typer()

    def read(self, *, is_script: bool) -> None:
        """Adds the declarations of the module to those of the script.

        Args:
            is_script: whether it is the script itself, whose constants a configurator may set.
        """
        if READERS.search(self.source):
            self.arguments.reads_arguments = True
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                self._read_call(node)
            elif isinstance(node, ast.Assign):
                self._read_subparser(node)
            elif isinstance(node, ast.FunctionDef):
                self._read_function(node)
            elif isinstance(node, ast.ClassDef):
                self._read_class(node)
        if is_script:
            self.arguments.constants = self.constants
            if re.search(r"\bexec\(", self.source):
                self.arguments.is_configured = True
                self.declare_constants()

    def declare_constants(self) -> None:
        """Adds the constants of the module as arguments, in place of earlier ones of the name."""
        for name, constant in self.constants.items():
            declared = []
            for argument in self.arguments.declared:
                if argument.names != (f"--{name}",):
                    declared.append(argument)
            self.arguments.declared = declared
            self._declare([f"--{name}"], constant.value, line=constant.line)

    def _read_constants(self) -> dict[str, Constant]:
        """Returns the constants at the top of the module whose values the syntax shows."""
        constants = {}
        for node in self.tree.body:
            target: ast.expr | None = None
            if isinstance(node, ast.Assign):
                target = node.targets[0]
            elif isinstance(node, ast.AnnAssign):
                target = node.target
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                value = evaluate(node.value, {})
                if value is not None:
                    constants[target.id] = Constant(value, node.lineno)
        return constants

    def _evaluate(self, node: ast.expr | None) -> object:
        """Returns the value of an expression; None if the syntax does not show it."""
        return evaluate(node, self.constants)

    def _declare(
        self,
        names: Sequence[str],
        default: object,
        *,
        line: int,
        value_type: type | None = None,
        flag: Sequence[str] = (),
        parser: str = "",
    ) -> None:
        """Adds an argument; its type is that of its default if none is given."""
        if value_type is None and default is not None:
            value_type = type(default)
        place = f"{self.path.name}, line {line}"
        self.arguments.declared.append(
            DeclaredArgument(tuple(names), default, value_type, tuple(flag), place, parser)
        )

    # argparse

    def _read_call(self, call: ast.Call) -> None:
        """Reads a call `parser.add_argument(…)`."""
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "add_argument":
            return
        names = _list_texts(call.args)
        options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        if not names:
            return
        default = self._evaluate(options.get("default"))
        value_type = TYPES.get(_unparse(options.get("type")))
        action = _unparse(options.get("action")).strip("'\"")
        flag: list[str] = []
        if action in ("store_true", "store_false"):
            flag = [names[-1]]
            default = False  # the flag is not given
        elif action.endswith("BooleanOptionalAction"):
            flag = [names[-1], names[-1].replace("--", "--no-", 1)]
        self._declare(
            names,
            default,
            line=call.lineno,
            value_type=value_type,
            flag=flag,
            parser=_unparse(call.func.value),
        )

    def _read_subparser(self, assignment: ast.Assign) -> None:
        """Reads an assignment `fit = commands.add_parser("fit", …)`."""
        call = assignment.value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return
        if call.func.attr == "add_parser":
            for name in _list_texts(call.args):
                self.arguments.parsers[name] = _unparse(assignment.targets[0])

    # click, typer and Hydra

    def _read_function(self, function: ast.FunctionDef) -> None:
        """Reads the decorators of a function, and its parameters if it is a typer command."""
        is_command = False
        for decorator in function.decorator_list:
            if not isinstance(decorator, ast.Call):
                continue
            decorator_name = _unparse(decorator.func)
            if decorator_name in ("click.option", "option"):
                self._read_click_option(decorator)
            elif decorator_name.endswith(".command"):
                is_command = True
            elif decorator_name == "hydra.main":
                self._read_hydra_config(decorator)
        is_run = function.name in self.run_functions
        if is_run or (is_command and re.search(r"\btyper\b", self.source)):
            self._read_typer_command(function)

    def _read_click_option(self, decorator: ast.Call) -> None:
        """Reads a decorator such as `click.option("--lr", default=0.1)`."""
        options = {keyword.arg: keyword.value for keyword in decorator.keywords if keyword.arg}
        default = self._evaluate(options.get("default"))
        value_type = TYPES.get(_unparse(options.get("type")))
        names = [text for text in _list_texts(decorator.args) if text.startswith("-")]
        flag: list[str] = []
        for name in names:
            if "/" in name:  # such as --amp/--no-amp
                flag = [part.strip() for part in name.split("/")]
        if flag:
            names = flag[:1]
        elif self._evaluate(options.get("is_flag")) is True:
            flag = names[-1:]
        if flag and default is None:
            default = False
        self._declare(names, default, line=decorator.lineno, value_type=value_type, flag=flag)

    def _list_functions_run_by_typer(self) -> set[str]:
        """Returns the functions that the module runs by `typer.run(function)`."""
        functions = set[str]()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and _unparse(node.func) == "typer.run":
                functions.update(_unparse(argument) for argument in node.args)
        return functions

    def _read_typer_command(self, function: ast.FunctionDef) -> None:
        """Reads the parameters of a typer command: `lr: float = 0.1`, or with `typer.Option`."""
        parameters = [*function.args.args, *function.args.kwonlyargs]
        no_default: list[ast.expr | None] = []
        missing = len(function.args.args) - len(function.args.defaults)
        defaults = no_default + [None] * missing + [*function.args.defaults]
        defaults += function.args.kw_defaults
        for parameter, default_node in zip(parameters, defaults, strict=True):
            annotation = parameter.annotation
            option_texts: list[str] = []
            if isinstance(annotation, ast.Subscript) and "Annotated" in _unparse(annotation.value):
                assert isinstance(annotation.slice, ast.Tuple)
                annotation, *metadata = annotation.slice.elts
                for call in metadata:
                    if isinstance(call, ast.Call):
                        option_texts += _list_texts(call.args)
            if isinstance(default_node, ast.Call):  # typer.Option(0.1, "--lr")
                option_texts += _list_texts(default_node.args[1:])
                default_node = next(iter(default_node.args), None)
            names = [text for text in option_texts if text.startswith("-")]
            if not names:
                names = [f"--{parameter.arg.replace('_', '-')}"]
            value_type = TYPES.get(_unparse(annotation))
            flag: list[str] = []
            if value_type is bool:
                flag = [names[0], names[0].replace("--", "--no-", 1)]
                if "/" in names[0]:
                    flag = names[0].split("/")
                    names = flag[:1]
            default = self._evaluate(default_node)
            self._declare(names, default, line=parameter.lineno, value_type=value_type, flag=flag)

    def _read_hydra_config(self, decorator: ast.Call) -> None:
        """Reads the config that a decorator `hydra.main(config_path=…, config_name=…)` names."""
        options = {keyword.arg: self._evaluate(keyword.value) for keyword in decorator.keywords}
        folder = self.path.parent / str(options.get("config_path") or ".")
        config = folder / str(options.get("config_name"))
        if config.suffix != ".yaml":
            config = config.with_name(f"{config.name}.yaml")
        sections = _read_yaml(config)
        self._declare_keys(sections, "", config)
        entries = sections.get("defaults")
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                continue
            for group, option in entry.items():
                name = str(group).removeprefix("override ").strip("/")
                option_file = folder / name / f"{option}.yaml"
                self._declare_key(name, option, config)
                self._declare_keys(
                    _read_yaml(option_file), f"{name.replace('/', '.')}.", option_file
                )

    def _declare_keys(self, sections: Mapping[object, object], prefix: str, file: Path) -> None:
        """Declares each value in a config, or a part of it, by its path such as optimizer.lr."""
        for key, value in sections.items():
            if isinstance(value, dict):
                self._declare_keys(value, f"{prefix}{key}.", file)
            else:
                self._declare_key(f"{prefix}{key}", value, file)

    def _declare_key(self, key: str, value: object, file: Path) -> None:
        """Declares the value at a path in a config; an interpolation is no known default."""
        if isinstance(value, str) and "${" in value:
            value = None
        elif isinstance(value, str):
            with suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string, and OmegaConf does not
                value = float(value)
        value_type = None
        if value is not None:
            value_type = type(value)
        declared = DeclaredArgument((key,), value, value_type, (), file.name)
        self.arguments.declared.insert(0, declared)

    # Dataclasses, as HfArgumentParser, tyro and others read them

    def _read_class(self, definition: ast.ClassDef) -> None:
        """Reads the fields of a dataclass, such as `lr: float = 0.1`."""
        decorators = [_unparse(decorator) for decorator in definition.decorator_list]
        if not any("dataclass" in decorator for decorator in decorators):
            return
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                default_node = node.value
                if isinstance(default_node, ast.Call):  # field(default=0.1)
                    options = {keyword.arg: keyword.value for keyword in default_node.keywords}
                    default_node = options.get("default")
                self._declare(
                    [f"--{node.target.id}"],
                    self._evaluate(default_node),
                    line=node.lineno,
                    value_type=TYPES.get(_unparse(node.annotation)),
                )


def evaluate(node: ast.expr | None, constants: Mapping[str, Constant]) -> object:
    """Returns the value of a literal, of a constant's name, or of simple arithmetic with them.

    Args:
        constants: those of the module.

    Returns:
        None if the syntax does not show the value.
    """
    if node is None:
        return None
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id].value
    if isinstance(node, ast.BinOp):
        first = evaluate(node.left, constants)
        second = evaluate(node.right, constants)
        if isinstance(first, int | float) and isinstance(second, int | float):
            with suppress(ArithmeticError, ValueError):
                return _compute(node.op, first, second)
        return None
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return value


def _compute(operator: ast.operator, first: float, second: float) -> float | None:
    """Returns the result of an arithmetic operation; None for an operator that is not known."""
    match operator:
        case ast.Add():
            return first + second
        case ast.Sub():
            return first - second
        case ast.Mult():
            return first * second
        case ast.Div():
            return first / second
        case ast.Pow() if abs(second) < 64:
            result: float = first**second
            return result
    return None


def _list_texts(nodes: Sequence[ast.expr]) -> list[str]:
    """Returns the literal strings among some expressions."""
    texts = []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def _unparse(node: ast.expr | None) -> str:
    """Returns the source of an expression; "" for None."""
    if node is None:
        return ""
    return ast.unparse(node)


def _read_yaml(file: Path) -> dict[object, object]:
    """Returns the mapping in a YAML file; an empty one if there is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if isinstance(content, dict):
        return content
    return {}
