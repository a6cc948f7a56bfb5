"""`completion SHELL`: a script for bash, zsh or fish, made from the parser itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

from neural_tune.commands.outcome import MET, Commands


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description='Print a completion script: eval "$(neural-tune completion bash)" (or zsh); neural-tune completion fish | source.',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(command=partial(_completion, commands))


def _completion(commands: Commands, arguments: argparse.Namespace) -> int:
    words = dict(words_of(commands))
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](words)
    sys.stdout.write(script)
    return MET


def words_of(commands: Commands) -> Iterator[tuple[str, tuple[str, str, tuple[str, ...]]]]:
    """Yield every command with its one line of help, the choices of its arguments, and its options."""
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}  # noqa: SLF001 - argparse has no public way
    for name, command in commands.choices.items():
        inner = command._actions  # noqa: SLF001
        options = tuple(option for item in inner for option in item.option_strings if option.startswith("--"))
        choices = " ".join(str(choice) for item in inner if not item.option_strings for choice in item.choices or ())
        yield name, (helps.get(name, ""), choices, options)


_Words = dict[str, tuple[str, str, tuple[str, ...]]]


def _bash(words: _Words) -> str:
    cases = "\n".join(
        f'        {name}) options="{" ".join(options)}"; choices="{choices}" ;;'
        for name, (_, choices, options) in words.items()
    )
    return f"""\
_neural_tune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" options="" choices=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(words)} --help --version" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    elif [ -n "$choices" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _neural_tune neural-tune
"""


def _zsh(words: _Words) -> str:
    return f"autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n{_bash(words)}"


def _fish(words: _Words) -> str:
    lines = ["complete -c neural-tune -f"]
    for name, (summary, choices, options) in words.items():
        shown = summary.replace("'", "\\'")
        lines.append(f"complete -c neural-tune -n __fish_use_subcommand -a {name} -d '{shown}'")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c neural-tune {seen} -l {option.removeprefix('--')}" for option in options]
        lines.append(
            f"complete -c neural-tune {seen} -a '{choices}'" if choices else f"complete -c neural-tune {seen} -F"
        )
    return "\n".join(lines) + "\n"
