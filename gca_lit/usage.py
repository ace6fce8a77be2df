"""What a person reads after a wrong command line or configuration: one sentence, with the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader

from gca_lit.class_names import all_settings, call_names, own_classes, settings_of

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

_yaml = get_loader("yaml")


class UsageError(Exception):
    """A wrong command line or configuration; the message is for the person who gave it."""


def explain(message: str, parser: ArgumentParser) -> str:
    """A message of jsonargparse as one sentence."""
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key != "config"]
    path = ""
    for key in keys:
        path = key if not path or key.startswith(f"{path}.") else f"{path}.{key}"
    prefix = f"{path}: " if path else ""
    if found := re.search(r"dot import path string: (\S+)|module '\S+' has no attribute '(\w+)'", message):
        name = found[1] or found[2]
        return f"{prefix}there is no class {name}" + (_nearest_class(name) or _own_classes(path, parser))
    if found := re.search(r"Multiple subclasses with name (\w+)", message):
        example = call_names().get(found[1], f"package.{found[1]}")
        return f"{prefix}several classes are called {found[1]}: name one by its path, such as {example}"
    if found := re.search(r"(No module named '\S+')\. Got value: (\S+)", message):
        return f"{prefix}{found[2]} cannot be imported: {found[1]}"
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        other = found[1].startswith("pytorch_lightning.")
        hint = f"; use lightning.pytorch{found[1].removeprefix('pytorch_lightning')}" if other else ""
        return f"{prefix}{found[1]} is not a subclass of {found[2]}{hint}"
    if found := re.search(r"Option '([^']+)' is not accepted before subcommand '(\w+)'", message):
        return f"put --config behind the subcommand: {found[2]} --config FILE"
    if found := re.search(r"unrecognized arguments: (?!--)(\S+)", message):
        return f"there is an argument too many: {found[1]}"
    if found := re.search(r"(?:ption '|unrecognized arguments: --)([^\s'=]+)", message):
        given = re.findall(r"given class_path '([\w.]+)'", message[: found.start()])
        given = given or re.findall(r"Got value: Namespace\(class_path='([\w.]+)'", message)
        hint = _nearest_of(found[1], given[-1]) if given else _nearest_setting(found[1], parser)
        return f"{prefix}there is no setting {found[1]}{hint}"
    if found := re.search(r"(?:File does not exist|Path is not a file): '(.+)'", message):
        return f"there is no file {_relative(found[1])}" + _nearest_file(found[1])
    if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
        return f"there is no subcommand {found[1]}: choose from {found[2]}"
    if found := re.search(r'expected "subcommand" to be one of {(.*)}', message):
        return f"name a subcommand: {found[1].replace(',', ', ')}"
    if found := re.search(r"arguments are required: (.*)", message):
        names = ", ".join(f"{path}.{name}" if path else name for name in found[1].split(", "))
        own = path or "prompt" in names  # which no file has
        there = "--config configs/base.yaml has all of them; an overlay names its own in its first line"
        return f"these settings are missing: {names}; {'name them as flags' if own else there}"
    if found := re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: Namespace\(.*)?$", message, re.MULTILINE):
        expected = re.findall(r"Expected an? (?!path but)(.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
        types = list(dict.fromkeys(map(_type, expected)))
        if types in (["Sequence"], ["tuple"], ["list"], ["list", "null"]):
            example = "[] for an empty one" if found[1] == "None" else f"such as [{found[1]}]"
            return f"{prefix}expected a list, {example}, got {found[1]}"
        return f"{prefix}expected {' or '.join(types) or 'another type'}, got {found[1]}"
    if (found := re.match(r"Unexpected config: (.*)", message, re.DOTALL)) and yaml.safe_load(found[1]) is None:
        return "there are no settings in it: write some, or leave the file out"
    if found := re.search(r"Problem with given class_path '(\S+)':\s*(.*)", message):
        return f"{prefix}{found[1]} cannot be imported: {found[2]}"
    return " ".join(message.split())


def load_yaml(text: str) -> Any:
    """Like jsonargparse's own loader, but two equal keys in a mapping are an error."""
    if ":" in text:
        _refuse_duplicates(yaml.compose(text, Loader=yaml.SafeLoader))
    return _yaml(text)


def _refuse_duplicates(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
            _refuse_duplicates(value)


def _nearest(name: str, candidates: Iterable[str]) -> str:
    candidates = [one for one in candidates if one != name]
    matches = get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _nearest_class(name: str) -> str:
    """Whatever its letters' case."""
    called = {bare.lower(): call for bare, call in call_names().items()}
    matches = get_close_matches(name.lower(), list(called), n=1)
    return f"; did you mean {called[matches[0]]}?" if matches else ""


def _own_classes(path: str, parser: ArgumentParser) -> str:
    names = own_classes(path, parser)
    return f"; gca_lit has {', '.join(names)}" if names else ""


def _nearest_of(name: str, class_path: str) -> str:
    """Of the settings of a class, or all of them."""
    settings = settings_of(class_path)
    return _nearest(name, settings) or f"; {class_path.rpartition('.')[2]} takes {', '.join(settings)}"


def _nearest_setting(name: str, parser: ArgumentParser) -> str:
    """Of a setting of the parser, or of any class that a configuration can name."""
    top = {action.dest for action in parser._actions}
    if hint := _nearest(re.sub(r"\.(class_path|init_args).*", "", name), top):
        return hint
    return _nearest(name.rpartition(".")[2], all_settings())


def _nearest_file(name: str) -> str:
    path = Path(name)
    near = list(path.parent.glob("*")) if path.parent.is_dir() else []
    files = {str(_relative(str(file))) for file in [*near, *CONFIGS.rglob("*.yaml")] if file.is_file()}
    return _nearest(str(_relative(name)), files)


def _relative(name: str) -> Path:
    path = Path(name)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _type(written: str) -> str:
    """<class 'int'> -> int, typing.Literal['a', 'b'] -> 'a', 'b'."""
    found = re.search(r"Literal\[(.*)\]|<class '(?:\w+\.)*(\w+)'>", written)
    return (found[1] or found[2]).replace("NoneType", "null") if found else written
