"""What does a job print about itself? Plain text of a fixed width: a terminal, a file and a page show the
same.

`--help` of a recipe shows the options that people change for that job, `--help-all` every one.
"""

import textwrap
from collections.abc import Mapping, Sequence

from jobs.options import REQUIRED, Option, first_sentence
from pipelines.invocation import as_typed

WIDTH = 100
_HELP_COLUMN = 6


def with_network(recipe: str, network: str) -> str:
    """The description of a recipe of which only the network is another: RECIPE:NETWORK."""
    return f"As {recipe}, with {network}."


def own_recipes(recipes: Mapping[str, str]) -> dict[str, str]:
    """Those of the recipes (name -> description) that say more than that their network is another."""
    return {name: text for name, text in recipes.items() if text != with_network(*name.partition(":")[::2])}


def recipe_list(
    program: str,
    description: str,
    recipes: Mapping[str, str],
    usual: str | None = None,
    options: Sequence[Option] = (),
) -> str:
    """Help of a job that takes a recipe: what it does, and a line for each recipe (name -> description).

    usual: the recipe that is taken where none is named, and options: its options, which follow the list.
    """
    own = own_recipes(recipes)
    width = max(map(len, own))
    lines = [f"  {name:<{width}}  {first_sentence(text)}" for name, text in own.items()]
    recipe = "RECIPE" if usual is None else "[RECIPE]"
    parts = [f"usage: {program} {recipe} [options]", _refilled(description), "recipes:\n" + "\n".join(lines)]
    if others := list(dict.fromkeys(name.partition(":")[2] for name in recipes if name not in own)):
        parts.append(
            _filled(f"A recipe with another network: RECIPE:NETWORK, with one of {', '.join(others)}.", 0)
        )
    if usual is None:
        parts.append(f"`{program} RECIPE --help` lists a recipe's options.")
    else:
        entries = [_entry(option, is_explained=True) for option in options]
        parts.append(
            "\n".join([f"options, which follow the recipe ({usual} where none is named):", *entries])
        )
    return "\n\n".join(parts)


def manual(
    program: str, description: str, options: Sequence[Option], common: Sequence[str], *, is_whole: bool
) -> str:
    """Help of a job's options. common: the paths of those to show, all if there are none."""
    shown = [
        option
        for option in options
        if is_whole or not common or option.default is REQUIRED or option.path in common
    ]
    needed = [_words(option) for option in options if option.default is REQUIRED]
    usage = textwrap.fill(
        " ".join(["usage:", program, *needed, "[options]"]),
        WIDTH,
        subsequent_indent=" " * 4,
        break_on_hyphens=False,
        break_long_words=False,
    )
    shown.sort(key=lambda option: option.default is not REQUIRED)
    parts = [usage, _refilled(description)]
    explained: dict[type, tuple[str, str]] = {}
    for group in dict.fromkeys(option.path.rpartition(".")[0] for option in shown):
        members = [option for option in shown if option.path.rpartition(".")[0] == group]
        part, text = group.replace("_", "-"), first_sentence(members[0].group)
        # A part of a kind that came before has the options that are explained there.
        first, its_text = explained.setdefault(members[0].owner, (part, text))
        if part != first:
            text = f"{text if text != its_text else ''} The same options as {first}.".strip()
        entries = [_entry(option, is_explained=part == first) for option in members]
        parts.append("\n".join([_filled(f"{part}: {text}" if group else "options:", 0), *entries]))
    if hidden := len(options) - len(shown):
        parts.append(f"--help-all shows {hidden} more options.")
    return "\n\n".join(parts)


def _entry(option: Option, *, is_explained: bool) -> str:
    default = "required" if option.default is REQUIRED else f"default: {option.default_text}"
    line = f"  {_words(option)} ({default})"
    return f"{line}\n{_filled(option.help, _HELP_COLUMN)}" if is_explained else line


def _words(option: Option) -> str:
    if option.is_positional:
        return option.path.upper()
    return f"{option.shown_name} {option.value_text}".rstrip()


def _refilled(text: str) -> str:
    """A docstring at this width; what is indented, such as a command, stays as it is."""
    paragraphs = as_typed(text).split("\n\n")
    return "\n\n".join(
        each if each.startswith(" ") else _filled(" ".join(each.split()), 0) for each in paragraphs
    )


def _filled(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(
        as_typed(text),
        WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
