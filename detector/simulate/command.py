# SPDX-License-Identifier: Apache-2.0
"""`exitprint simulate`: what an adversary could link over a set of relays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import UsageError
from detector.base.ranges import parse_pool
from detector.simulate.linkage import After, Linkage, linkage
from detector.simulate.mappings import MAPPINGS, Mapping, find
from detector.simulate.plot import picture

_NAMES = ", ".join(MAPPINGS)
_LARGE = 1_000_000
_NOTHING = 0.005  # bits


@click.command("simulate")
@click.option(
    "--pools", required=True, metavar="N,N,...", help="Exits of each relay: a number or a range A-B."
)
@click.option("--keys", default=1000, show_default=True, help="Users: WireGuard keys or tunnel addresses.")
@click.option("--mapping", default="kernel_persistent", show_default=True, help=f"One of {_NAMES}.")
@click.option("--mitigation", help="A second mapping, to compare with.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a picture into this SVG file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(
    pools: str, keys: int, mapping: str, mitigation: str | None, plot: Path | None, as_json: bool
) -> None:
    r"""Say what an adversary could link over a set of relays.

    From the sizes of the exit pools and from how each relay chooses: how many users can be told apart by
    their exits, what the exits on some relays say about those on the next, and how many share a tuple.

    The mapping `secret` stands for a secret of each relay (nft's jhash without a seed), `random` for a draw
    for each flow; the others are the predictors of the report.

    \b
    Columns, after 1, 2 ... n relays:
      tuples      combinations of exits that the pools could make
      told apart  those that the mapping makes
      expected    different ones among the keys
      bits        what a user's exits say of who it is (entropy)
      linked      bits that exits on some relays say of the others: log2(tuples / told apart)
      guessed     how often the exit is named by who saw those on the relays before
      same        share of the other users with the same tuple
    """
    sizes = read_pools(pools)
    names = [mapping] if mitigation is None else [mapping, mitigation]
    found = [linkage(one, sizes, keys) for one in map(find, names)]
    if plot is not None:
        _write(plot, picture(found, sizes))
    if as_json:
        click.echo(json.dumps(_as_dict(found, sizes, keys)))
        return
    console = Console(highlight=False)
    for one in found:
        _show(one, keys, console)
    if mitigation is not None:
        console.print(_comparison(*found))


def read_pools(text: str) -> tuple[int, ...]:
    """The sizes of pools as a person writes them: ``60,11`` or ``203.0.113.68-203.0.113.126,11``.

    Raises:
        UsageError: names what is no pool.
    """
    return tuple(_size(part.strip()) for part in text.split(","))


def _size(text: str) -> int:
    if text.isdecimal() and text.isascii() and len(text) < 12:
        return int(text)
    try:
        return parse_pool(text).size
    except UsageError as error:
        raise UsageError(
            f"--pools: {text!r} is no pool", "write sizes such as 60,11,8, or ranges of addresses"
        ) from error


def _write(path: Path, drawing: str) -> None:
    if path.suffix.lower() != ".svg":
        raise UsageError(f"{path}: only SVG can be drawn", f"write --plot {path.with_suffix('.svg')}")
    try:
        path.write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name a file that can be") from error


def _as_dict(found: Sequence[Linkage], sizes: Sequence[int], keys: int) -> dict[str, object]:
    mitigated = found[1].as_dict() if len(found) > 1 else None
    head = {"schema_version": SCHEMA_VERSION, "pools": list(sizes), "keys": keys}
    return {**head, **found[0].as_dict(), "mitigation": mitigated}


def _show(found: Linkage, keys: int, console: Console) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for heading in (
        "relays",
        "pool",
        "tuples",
        "told apart",
        "expected",
        "bits",
        "linked",
        "guessed",
        "same",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.after:
        table.add_row(*_row(one))
    console.print(Text(f"{found.mapping.name}: ", "bold").append(found.mapping.meaning, "not bold"))
    console.print(table)
    console.print(Text(_meaning(found.mapping, found.after[-1], keys)))
    console.print()


def _row(one: After) -> tuple[str, ...]:
    spread = f" ± {one.deviation:.1f}" if one.deviation >= 0.05 else ""
    return (
        str(one.relays),
        _number(one.pool),
        _number(one.combinations),
        _number(one.cells),
        f"{one.distinct:,.1f}{spread}",
        f"{one.bits:.2f}",
        f"{one.excess_bits:.2f}",
        f"{one.guess:.1%}" if one.relays > 1 else "–",
        f"{one.same_tuple:.2%}" if one.same_tuple >= 1e-4 else f"{one.same_tuple:.0e}",
    )


def _number(value: int) -> str:
    """Short enough for a table."""
    if value < _LARGE:
        return f"{value:,}"
    return f"{value:.1e}".replace("e+", "e") if value < 10**300 else f"2^{value.bit_length() - 1}"


def _meaning(mapping: Mapping, last: After, keys: int) -> str:
    """One paragraph for people."""
    if not mapping.sticky:
        return "No user has exits of its own: nothing is linked, on one relay or over several."
    caveat = f" Mind: {mapping.caveat}." if mapping.caveat else ""
    if last.excess_bits < _NOTHING:
        return (
            "Exits on some relays say nothing about those on others. Each relay by itself still knows a user "
            f"again by its exit.{caveat}"
        )
    others = (keys - 1) * last.same_tuple
    return (
        f"Who saw a user on the relays before names the exit on the last one in {last.guess:.1%} of cases "
        f"(blindly {last.blind:.1%}). A user shares its tuple with {others:,.1f} of the {keys - 1:,} others, "
        f"on average.{caveat}"
    )


def _comparison(before: Linkage, after: Linkage) -> Text:
    one, other = before.after[-1], after.after[-1]
    text = Text(f"From {before.mapping.name} to {after.mapping.name}: ", "bold")
    text.append(
        f"linked bits over {one.relays} relays {one.excess_bits:.2f} → {other.excess_bits:.2f}, "
        f"next exit guessed {one.guess:.1%} → {other.guess:.1%}",
        "green" if other.excess_bits < one.excess_bits else "yellow",
    )
    return text
