"""The model of a configuration file, and the sliding window that is measured beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from bench_training import MORE_LAYERS
from gca_lit.attention import GroupedCrossAttention, SlidingWindow
from gca_lit.data.tokenizers import load_tokenizer
from gca_lit.module import CausalLM
from gca_lit.usage import load_yaml


def recipe_model(path: Path, compiled: bool = False) -> CausalLM:
    """The model of a whole configuration file as lightning_cli.py makes it: its `model` section, and the vocabulary of
    its `data.tokenizer`. It has no weights yet.

    Raises ValueError when the file lacks one of them, or has no grouped cross attention.
    """
    settings = load_yaml(path.read_text(encoding="utf-8"))
    try:
        given, tokenizer = settings["model"], settings["data"]["tokenizer"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole configuration: it needs a model section and data.tokenizer") from error
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(CausalLM, "model")
    given = given | {"vocab_size": load_tokenizer(tokenizer).vocab_size, "compile": compiled}
    model: CausalLM = made.instantiate(made.parse_object({"model": given})).model
    if not isinstance(model.attention, GroupedCrossAttention):
        raise ValueError(f"{path} has {model.attention.name}: give the configuration of grouped cross attention")
    return model


def sliding_window(model: CausalLM) -> CausalLM:
    """The same with `model`'s window in every layer, and with more layers."""
    assert isinstance(model.attention, GroupedCrossAttention)
    config = replace(model.config, layers=model.config.layers + MORE_LAYERS)
    return CausalLM(SlidingWindow(model.attention.window), model.vocab_size, config, compile=model.compiled)
