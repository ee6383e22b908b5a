# SPDX-License-Identifier: Apache-2.0
"""exitprint(8) and the completion of bash, made from the commands: `python -m tools.command_pages FOLDER`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from detector.base.errors import EXIT_FINDING, EXIT_HOST, EXIT_USAGE
from detector.cli import main as command
from tools.roff import bold, escaped, header, paragraph

# Values that are words of a few, and what else a word may be.
_FILES = click.Path | click.File


@dataclass(frozen=True, slots=True)
class Sub:
    """One subcommand, or a subcommand's subcommand.

    Attributes:
        path: its words, without the program's name.
    """

    path: tuple[str, ...]
    command: click.Command

    @property
    def options(self) -> list[click.Option]:
        """Its options, without those that are not shown."""
        return [one for one in self.command.params if isinstance(one, click.Option) and not one.hidden]

    @property
    def arguments(self) -> list[click.Argument]:
        """Its arguments, in their order."""
        return [one for one in self.command.params if isinstance(one, click.Argument)]


def subcommands() -> list[Sub]:
    """Every subcommand, sorted by name; groups are followed by what is in them."""
    return list(_walk(command, ()))


def _walk(group: click.Group, path: tuple[str, ...]) -> Iterator[Sub]:
    context = click.Context(group)
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        if one is None or one.hidden:
            continue
        yield Sub((*path, name), one)
        if isinstance(one, click.Group):
            yield from _walk(one, (*path, name))


# --- the manual page --------------------------------------------------------------------------------


def manual() -> str:
    """exitprint(8)."""
    parts = [
        header(
            "exitprint",
            8,
            "exitprint",
            "tells whether exit addresses tell the peers of a WireGuard relay apart",
        ),
        ".SH SYNOPSIS\n.B exitprint\n.I COMMAND\n[\\fIOPTION\\fR]...\n",
        ".SH DESCRIPTION\n",
        paragraph(
            "A WireGuard relay hides its peers behind a pool of exit addresses. exitprint watches every "
            "choice of an exit in the kernel, computes how consistently each peer maps to an exit and why, "
            "and says so on the terminal, on a status page and to Prometheus. It only reads and counts: no "
            "packet, rule or peer is ever changed."
        ),
        paragraph(
            "Every command has --help, and those that report have --json, which prints one object alone on "
            "standard output. NO_COLOR is respected."
        ),
        ".SH COMMANDS\n",
        *(_manual_entry(one) for one in subcommands()),
        _STATUS,
        _FILES_SECTION,
        _OVERHEAD,
        _STABILITY,
        ".SH SEE ALSO\n.BR exitprint.yml (5),\n.BR wg (8),\n.BR nft (8),\n.BR conntrack (8)\n",
    ]
    return "".join(parts)


_STATUS = f"""\
.SH EXIT STATUS
.TP
0
Done.
.TP
{EXIT_FINDING}
A finding: rules that leak, for example.
.TP
{EXIT_USAGE}
The input is wrong: an option, a file, the configuration.
.TP
{EXIT_HOST}
This host cannot do what was asked.
"""
_FILES_SECTION = """\
.SH FILES
.TP
.I /etc/exitprint/exitprint.yml
The configuration, see
.BR exitprint.yml (5).
.TP
.I /run/exitprint/inspect.sock
Where the commands for the person on call ask the service.
"""
_OVERHEAD = """\
.SH OVERHEAD
About 100 ns for each new flow and 50 ns for each packet of an established one, on a machine of two
processors; `make bench` in the source measures it.
"""
_STABILITY = """\
.SH STABILITY
Names of metrics, the keys of exitprint.yml and the objects of \\-\\-json stay as they are within a major
version; what is added is named in the changelog.
"""


def _manual_entry(one: Sub) -> str:
    said = "".join(paragraph(text) for text in _paragraphs(one.command.help or "")).removeprefix(".PP\n")
    usage = " ".join(argument.make_metavar(*_context(one)) for argument in one.arguments)
    title = f".SS exitprint {' '.join(map(escaped, one.path))} {escaped(usage)}".rstrip()
    options = "".join(_option(option) for option in one.options)
    return f"{title}\n{said}{options}"


def _context(one: Sub) -> tuple[click.Context, ...]:
    """What click from 8.2 on wants to be told."""
    wants = click.Argument.make_metavar.__code__.co_argcount > 1
    return (click.Context(one.command),) if wants else ()


def _paragraphs(text: str) -> list[str]:
    parts = re.split(r"\n\s*\n", text.replace("\b", "").strip())
    return [" ".join(part.split()) for part in parts if part.strip()]


def _option(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag or option.count else f" {_value_of(option)}"
    said = escaped(" ".join((option.help or "").split()))
    return f".TP\n{bold(names)}{escaped(value)}\n{said or '.'}\n"


def _value_of(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    kind = option.type
    return "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else kind.name.upper()


# --- completion -------------------------------------------------------------------------------------


def completion() -> str:
    """The completion of bash: commands, options, the words of a choice, and names of files."""
    listed = subcommands()
    cases = "".join(_case(one) for one in listed)
    names = " ".join(sorted({one.path[0] for one in listed}))
    paths = "|".join(f'" {" ".join(one.path)}"' for one in listed)
    return _COMPLETION.replace("@PATHS@", paths).replace("@NAMES@", names).replace("@CASES@", cases)


_COMPLETION = """\
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# bash completion for exitprint(8), made from its commands.
_exitprint() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} path='' word='' words=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $word" in
            @PATHS@) path+=" $word" ;;
            *) break ;;
        esac
    done
    case $path in
        "") words="@NAMES@ --help --version" ;;
@CASES@    esac
    if [[ $words == @files || -z $words ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [[ ${#COMPREPLY[@]} -eq 0 && $current != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}
complete -o filenames -F _exitprint exitprint
"""


def _case(one: Sub) -> str:
    words = sorted({name for option in one.options for name in (*option.opts, *option.secondary_opts)})
    if isinstance(one.command, click.Group):
        words = [*one.command.list_commands(click.Context(one.command)), *words]
    values = "".join(_values(option) for option in one.options)
    listed = " ".join([*words, "--help"])
    inner = f"case $before in{values} *) words={shlex.quote(listed)} ;; esac"
    return f'        " {" ".join(one.path)}") {inner} ;;\n'


def _values(option: click.Option) -> str:
    """What may follow an option."""
    if option.is_flag or option.count:
        return ""
    names = "|".join([*option.opts, *option.secondary_opts])
    if isinstance(option.type, click.Choice):
        return f" {names}) words={shlex.quote(' '.join(map(str, option.type.choices)))} ;;"
    return f" {names}) words=@files ;;" if isinstance(option.type, _FILES) else f" {names}) words= ;;"


def main(folder: Path) -> None:
    """Write both into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exitprint.8").write_text(manual())
    (folder / "exitprint.bash").write_text(completion())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
