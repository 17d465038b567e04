"""What makes a shell complete commands, recipes and options? A script that lists them all.

    eval "$(distillflow --completion bash)"

The script is written once and asks nobody afterwards: a shell that started Python at each key would wait.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jobs.commands import COMMANDS, options_of_job, purpose_of
from jobs.options import Option, first_sentence
from pipelines.invocation import PROGRAM, as_typed


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What may follow a command."""

    recipes: tuple[str, ...]
    """Empty for a command that takes none."""
    options: tuple[Option, ...]
    """Those of all recipes."""

    @property
    def names(self) -> list[str]:
        """The options as they are typed."""
        own = [name for option in self.options for name in _names_of(option)]
        return [*own, "--help", "--help-all"]


def _names_of(option: Option) -> list[str]:
    if option.is_positional:
        return []
    return [option.name, option.negation] if option.is_flag else [option.name]


def _words_of(job: str) -> _Words:
    by_recipe = options_of_job(job)
    recipes = tuple(name for name in by_recipe if name)
    options = {option.path: option for each in by_recipe.values() for option in each}
    return _Words(recipes=recipes, options=tuple(options.values()))


def _bash() -> str:
    cases = [f'1:*) words="{" ".join([*COMMANDS, "--help", "--version"])}" ;;']
    for name, job in COMMANDS.items():
        words = _words_of(job)
        if words.recipes:
            cases.append(f'2:{name}) words="{" ".join([*words.recipes, "--help"])}" ;;')
        cases.append(f'*:{name}) words="{" ".join(words.names)}" ;;')
    return "\n".join(
        [
            f"_{PROGRAM}() {{",
            '    local words="" before="" typed="${COMP_WORDS[COMP_CWORD]}" place="$COMP_CWORD"',
            # bash takes recipe:network for three words, and puts what is chosen in the place of the last.
            '    if [[ "${COMP_WORDS[3]-}" == : && "$place" -le 4 ]]; then',
            '        before="${COMP_WORDS[2]}:" place=2',
            '        typed="$before${COMP_WORDS[4]-}"',
            "    fi",
            '    case "$place:${COMP_WORDS[1]}" in',
            *(f"        {case}" for case in cases),
            "    esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$typed"))',
            '    COMPREPLY=("${COMPREPLY[@]#"$before"}")',
            "}",
            # Where no word fits, names of files are completed.
            f"complete -o default -F _{PROGRAM} {PROGRAM}",
        ]
    )


def _zsh() -> str:
    return f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    return "\n".join(_fish_lines())


def _fish_lines() -> Iterator[str]:
    for name, job in COMMANDS.items():
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d {_quoted(purpose_of(job))}"
        words, here = _words_of(job), f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}'"
        if words.recipes:
            yield f"{here} -a '{' '.join(words.recipes)}' -d recipe"
        for option in words.options:
            text = _quoted(as_typed(first_sentence(option.help)))
            for typed in _names_of(option):
                yield f"{here} -l {typed.removeprefix('--')} -d {text}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SHELLS: Mapping[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""By the name of a shell, what writes its script."""
