"""`completion SHELL`: a script for bash, zsh or fish, made from the parser itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from neural_tune.commands.outcome import MET, Commands


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description='Print a completion script: eval "$(neural-tune completion bash)" (or zsh); neural-tune completion fish | source.',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to complete in")
    parser.set_defaults(command=partial(_completion, commands))


@dataclass(frozen=True, slots=True)
class _Word:
    """A word that completes, and what it means."""

    text: str
    summary: str


@dataclass(frozen=True, slots=True)
class _Command:
    """What may follow a command: its options, and either one of its choices or a file."""

    word: _Word
    choices: tuple[str, ...]
    options: tuple[_Word, ...]


# How a quote is written between single quotes.
_ZSH_QUOTE, _FISH_QUOTE = r"'\''", r"\'"
_GLOBAL = (_Word("--help", "show help and exit"), _Word("--version", "show the version and exit"))


def _completion(commands: Commands, arguments: argparse.Namespace) -> int:
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    sys.stdout.write(script(_described(commands)))
    return MET


def _described(commands: Commands) -> tuple[_Command, ...]:
    """Return what argparse knows of every command; there is no public way to ask it."""
    summaries = {choice.dest: choice.help or "" for choice in commands._choices_actions}  # noqa: SLF001
    return tuple(
        _Command(
            _Word(name, summaries.get(name, "")),
            tuple(str(choice) for item in parser._actions if not item.option_strings for choice in item.choices or ()),  # noqa: SLF001
            tuple(
                _Word(option, parser._get_formatter()._expand_help(item))  # noqa: SLF001
                for item in parser._actions  # noqa: SLF001
                for option in item.option_strings
                if option.startswith("--")
            ),
        )
        for name, parser in commands.choices.items()
    )


def _bash(commands: Sequence[_Command]) -> str:
    cases = "\n".join(
        f'        {command.word.text}) options="{_joined(command.options)}"; choices="{" ".join(command.choices)}" ;;'
        for command in commands
    )
    return f"""\
_neural_tune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" options="" choices=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{_joined([command.word for command in commands])} {_joined(_GLOBAL)}" -- "$word"))
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
        local IFS=$'\\n'  # names of files may hold spaces
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _neural_tune neural-tune
"""


def _zsh(commands: Sequence[_Command]) -> str:
    cases = "\n".join(
        f"        {command.word.text}) options=({_zsh_words(command.options)}); choices=({' '.join(command.choices)}) ;;"
        for command in commands
    )
    return f"""\
#compdef neural-tune
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit -i }}
_neural_tune() {{
    local -a commands options choices
    if (( CURRENT == 2 )); then
        commands=({_zsh_words([command.word for command in commands])})
        options=({_zsh_words(_GLOBAL)})
        [[ $PREFIX == -* ]] && _describe -o option options || _describe command commands
        return
    fi
    case $words[2] in
{cases}
    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o option options
    elif (( $#choices )); then
        compadd -- $choices
    else
        _files
    fi
}}
compdef _neural_tune neural-tune
"""


def _fish(commands: Sequence[_Command]) -> str:
    lines = ["complete -c neural-tune -f", *(_fish_option("__fish_use_subcommand", word) for word in _GLOBAL)]
    for command in commands:
        name, summary = command.word.text, _quoted(command.word.summary, _FISH_QUOTE)
        lines.append(f"complete -c neural-tune -n __fish_use_subcommand -a {name} -d {summary}")
        after = f"'__fish_seen_subcommand_from {name}'"
        lines += [_fish_option(after, option) for option in command.options]
        rest = f"-a '{' '.join(command.choices)}'" if command.choices else "-F"
        lines.append(f"complete -c neural-tune -n {after} {rest}")
    return "\n".join(lines) + "\n"


def _fish_option(condition: str, option: _Word) -> str:
    name = option.text.removeprefix("--")
    return f"complete -c neural-tune -n {condition} -l {name} -d {_quoted(option.summary, _FISH_QUOTE)}"


def _joined(words: Sequence[_Word]) -> str:
    return " ".join(word.text for word in words)


def _zsh_words(words: Sequence[_Word]) -> str:
    """Return "name:what it is" for `_describe`."""
    colon = r"\:"
    return " ".join(_quoted(f"{word.text}:{word.summary.replace(':', colon)}", _ZSH_QUOTE) for word in words)


def _quoted(text: str, quote: str) -> str:
    """Return `text` in single quotes, with `quote` in place of every quote in it."""
    return "'" + text.replace("'", quote) + "'"
