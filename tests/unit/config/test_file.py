# SPDX-License-Identifier: Apache-2.0
"""What a configuration file may say, and what is said of one that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.config.command import check_config
from detector.config.document import MAX_VALUES
from detector.config.file import ConfigError, load_config, parse_duration
from detector.config.model import Config, Listen, Tables

WHOLE = """\
relay: se-sto-wg-001
wireguard: [wg0, wg1]
network_namespace: relay
window: 24h
interval: 10s
session_gap: 10m
anonymity_floor: 5
hook: kprobe
listen: "[::1]:9973"
user: exitprint
log_format: json
log_level: debug
hosts: [relay.example.net]
runbooks: https://wiki.example.net/exitprint
tables: {peers: 100, pairs: 200, destinations: 1024, ports: 2048, panes: 6}
"""


def load(tmp_path: Path, text: str | bytes) -> Config:
    """The configuration with this text."""
    path = tmp_path / "exitprint.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    """What is said of this text, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.status == 2
    return [line.removeprefix(f"{tmp_path}/exitprint.yaml:") for line in caught.value.problems]


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each key of the file arrives under its name and in its unit."""
    assert load(tmp_path, WHOLE) == Config(
        relay="se-sto-wg-001",
        wireguard=("wg0", "wg1"),
        network_namespace="relay",
        window=86_400,
        interval=10,
        session_gap=600,
        hook="kprobe",
        listen=Listen("::1", 9973),
        log_format="json",
        log_level="debug",
        hosts=("relay.example.net",),
        runbooks="https://wiki.example.net/exitprint",
        tables=Tables(peers=100, pairs=200, destinations=1024, ports=2048, panes=6),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_defaults(tmp_path: Path, text: str) -> None:
    """A file that sets nothing gives the defaults."""
    assert load(tmp_path, text) == Config()


def test_null_is_the_default(tmp_path: Path) -> None:
    """A null interface list and namespace mean every interface and our own namespace."""
    config = load(tmp_path, "wireguard: null\nnetwork_namespace: null\n")
    assert (config.wireguard, config.namespace_path) == (None, None)


def test_namespace_by_name_or_path() -> None:
    """A namespace's name stands for the file that `ip netns` keeps, a path for itself."""
    assert Config(network_namespace="relay").namespace_path == Path("/run/netns/relay")
    assert Config(network_namespace="/proc/1/ns/net").namespace_path == Path("/proc/1/ns/net")


def test_json_round_trip(tmp_path: Path) -> None:
    """A child process reads the same frozen configuration from JSON."""
    config = load(tmp_path, WHOLE)
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(FrozenInstanceError):
        config.relay = "other"  # type: ignore[misc]


def test_children_import_no_validator() -> None:
    """What a child imports for its configuration loads no YAML parser."""
    code = "import sys, detector.config.model; print([m for m in ['yaml'] if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("windw: 24h", "1: windw: unknown key: did you mean window?"),
        ("tables: {pears: 24}", "1: tables.pears: unknown key: did you mean peers?"),
        ("window: 24", '1: window: 24 is not a duration with its unit (s, m, h, d) from 10s to 30d'),
        ("\nwindow: 24 hours", '2: window: "24 hours" is not a duration'),
        ("interval: 0s", '1: interval: "0s" is not a duration with its unit (s, m, h, d) from 1s to 1h'),
        ("interval: -3s", '1: interval: "-3s" is not'),
        ("anonymity_floor: 0", "1: anonymity_floor: 0 is not a number of peers from 1 to 1000000"),
        ("anonymity_floor: '5'", '1: anonymity_floor: "5" is not a number'),
        ("anonymity_floor: true", "1: anonymity_floor: true is not a number"),
        ("hook: xdp", '1: hook: "xdp" is not auto, netfilter or kprobe'),
        ("wireguard: wg0", '1: wireguard: "wg0" is not a list of interface names, such as [wg0]'),
        ("wireguard: []", "1: wireguard: [] is not a list of interface names"),
        ("wireguard: [a-name-that-is-too-long]", '1: wireguard[0]: "a-name-that-is-too-long" is not the'),
        ("wireguard: [wg0, wg0]", "1: wireguard[1]: wg0 is listed twice"),
        ("exits: [192.0.2.1, 192.0.2.9-192.0.2.1]", '1: exits[1]: "192.0.2.9-192.0.2.1" is not an address'),
        ("hosts: [a b]", '1: hosts[0]: "a b" is not a host name'),
        ("runbooks: wiki", '1: runbooks: "wiki" is not an address of the web'),
        ("network_namespace: a/b", '1: network_namespace: "a/b" is not a name'),
        ("relay: no", "1: relay: false is not a name"),
        ("listen: 9973", "1: listen: 9973 is not an address and a port, such as"),
        ("listen: 127.0.0.1:99999", '1: listen: "127.0.0.1:99999" is not an address and a port'),
        ("listen: ::1:9973", '1: listen: "::1:9973" is not an address and a port'),
        ("listen: 0.0.0.0:9973", '1: listen: "0.0.0.0:9973" is not a loopback address'),
        ("tables: {ports: 1000}", "1: tables.ports: 1000 is not a power of two from 16"),
        ("tables: 5", "1: tables: 5 is not a group of"),
        ("inspect_mode: '0666'", '1: inspect_mode: "0666" is not "0600" for the owner alone, or "0660"'),
        ("inspect_mode: 0777", "1: inspect_mode: 511 is not"),
        ("inspect_mode: 660\ninspect_group: adm", "1: inspect_mode: 660 is not"),
        ("inspect_mode: '0660'", "1: inspect_mode: 0660 is for a group: name it with inspect_group"),
        ("inspect_owner: 0", "1: inspect_owner: 0 is not the name of a user"),
        ("interval: 30s\nwindow: 20s\nsession_gap: 5s", "1: interval: interval (30s) is not shorter"),
        ("window: 1m", "1: window: session_gap (600s) is not shorter than window (60s)"),
        ("relay: a\nrelay: b", "1: relay: the key is there again in line 2"),
        ("tables:\n  peers: 20\n  peers: 30", "2: tables.peers: the key is there again in line 3"),
        ("relay: [", "1:9: not YAML: "),
        ("a: b: c", "1:5: not YAML: mapping values are not allowed here"),
        ("\nrelay: \x07", "2: holds a character that YAML does not allow"),
        (b"\nrelay: \xff", " is not UTF-8 text: byte 8, in line 2"),
        ("# nothing\n- relay", "2: expected keys with values"),
        ("relay", "1: expected keys with values"),
        ("\nwindow: 2026-02-31", "2: window: 2026-02-31 is not a duration"),
        ("interval: 10s\nrelay: 2026-13-45", "2: relay: 2026-13-45 is not a name"),
        ("relay: 2026-12-31", "1: relay: 2026-12-31 is not a name"),
        ("relay: 2026-12-31 10:00:00", "1: relay: 2026-12-31 10:00:00 is not a name"),
        ("\nanonymity_floor: " + "9" * 5000, "2: anonymity_floor: 9999"),
        ("anonymity_floor: 1" + "0" * 400 + ".5", "1: anonymity_floor: 1000"),
        ("window: !!binary aGFsbG8=", "1: window: aGFsbG8= is not a duration"),
        ("window: !!python/name:os.system x", "1: window: x is not a duration"),
        ("1: 2", "1: 1: unknown key"),
        ("a: &a [*a]", "1: the alias *a stands inside what it names"),
        ("relay: *nobody", "1: the alias *nobody names nothing"),
        ("? [a]\n: b", "1: a list or a mapping stands"),
        ("relay: &a b\n*a : b", "2: an alias stands where a key is expected"),
        ("relay: a\n---\nrelay: b", "2: a second document begins"),
        ("hook: auto\nlisten: [::1]:9973", "2:10: not YAML: expected the node content, but found ':'; an a"),
        ("listen: 9973", '1: listen: 9973 is not an address and a port, such as 127.0.0.1:9973 or "[::1]'),
        ("relay: &a wg0\nwireguard: [*a, *a]", "2: wireguard[1]: wg0 is listed twice"),
        ("#" * (1 << 20) + "#", " is not a file of at most 1048576 bytes"),
        ("[" * 3000, "1: more than 16 levels"),
        ("a: " + "{a: " * 16, "1: more than 16 levels"),
    ],
)  # fmt: skip
def test_one_line_names_the_problem(tmp_path: Path, text: str | bytes, expected: str) -> None:
    """A wrong file gives one line: where it is, the key, the value and what is expected."""
    (line,) = problems(tmp_path, text)
    assert line.startswith(expected)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", 0o600),
        ("inspect_group: adm", 0o660),
        ("inspect_group: adm\ninspect_mode: 0600", 0o600),
        ("inspect_group: adm\ninspect_mode: '660'", 0o660),
    ],
)
def test_the_mode_of_the_socket(tmp_path: Path, text: str, mode: int) -> None:
    """Its owner's alone, its group's if there is one, or what is written, with quotes or without."""
    assert load(tmp_path, text).socket_mode == mode


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    """Three wrong keys give three lines, in one go."""
    found = problems(tmp_path, "hook: a\nwindow: b\nother: c\n")
    assert [line.split(": ")[1] for line in found] == ["hook", "window", "other"]


def test_unknown_values_stay_unsaid(tmp_path: Path) -> None:
    """A key that was pasted into the file does not come back in the error, whatever its place."""
    key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
    for text in (f"private_key: {key}", f"relay: a\n{key}: b: c", f"tables: {{psk: {key}}}"):
        assert key not in "".join(problems(tmp_path, text))


def test_beyond_loopback_when_told(tmp_path: Path) -> None:
    """Another address than loopback needs a key of its own."""
    config = load(tmp_path, "listen: 192.0.2.1:80\nlisten_beyond_loopback: true\n")
    assert config.listen == Listen("192.0.2.1", 80)


@pytest.mark.parametrize(("text", "listen"), [("localhost:1", "127.0.0.1:1"), ("'[::1]:0'", "[::1]:0")])
def test_listen_is_written_back(tmp_path: Path, text: str, listen: str) -> None:
    """An address and port print the way they are written."""
    assert str(load(tmp_path, f"listen: {text}").listen) == listen


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("1m30s", 90), ("1.5h", 5400), ("2d", 172_800)])
def test_durations(text: str, seconds: float) -> None:
    """A duration is the sum of its parts."""
    assert parse_duration(text) == seconds


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file and a directory are errors that name them."""
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_config(tmp_path)


def test_exits(tmp_path: Path) -> None:
    """Exits stay as they are written, and an inverted range is named with its place."""
    text = "exits: [203.0.113.68-203.0.113.126, 2001:db8::/120]"
    assert load(tmp_path, text).exits == ("203.0.113.68-203.0.113.126", "2001:db8::/120")
    (line,) = problems(tmp_path, "exits:\n- 203.0.113.126-203.0.113.68\n")
    assert line.startswith('2: exits[0]: "203.0.113.126-203.0.113.68" is not an address, a range or a prefix')


def nested(levels: int, width: int = 9) -> str:
    """A text whose last alias stands for width**levels values."""
    lines = [f"a: &x0 [{', '.join('x' * width)}]"]
    lines += [f"k{at}: &x{at} [{', '.join([f'*x{at - 1}'] * width)}]" for at in range(1, levels)]
    return "\n".join([*lines, f"exits: *x{levels - 1}"])


@pytest.mark.parametrize("levels", [7, 9, 12])
def test_what_aliases_multiply_is_refused_at_once(tmp_path: Path, levels: int) -> None:
    """A few hundred bytes that stand for millions of values cost no time; the line that does it is named."""
    begun = time.process_time()
    (line,) = problems(tmp_path, nested(levels))
    assert line.startswith("5: more than 65536 values, aliases counted each time")
    assert time.process_time() - begun < 1.0


def test_aliases_within_bounds_are_taken(tmp_path: Path) -> None:
    """One list for two keys is what aliases are for."""
    config = load(tmp_path, "exits: &x [192.0.2.1]\nhosts: *x\n")
    assert config.exits == config.hosts == ("192.0.2.1",)


@pytest.mark.parametrize("count", [MAX_VALUES - 3, MAX_VALUES])
def test_a_long_list_takes_seconds_at_most(tmp_path: Path, count: int) -> None:
    """As many exits as a file may hold are read, one more than that is refused, neither takes long."""
    text = "exits:\n" + "".join(f"- 10.{at >> 16}.{at >> 8 & 255}.{at & 255}\n" for at in range(count))
    begun = time.process_time()
    if count < MAX_VALUES - 2:
        assert len(load(tmp_path, text).exits) == count
    else:
        assert "more than 65536 values" in problems(tmp_path, text)[0]
    assert time.process_time() - begun < 10.0


@pytest.mark.parametrize("text", ['relay: "' + "a" * 1_000_000, "relay: " + "a" * 1_000_000, "- " * 500_000])
def test_a_bomb_of_characters_takes_seconds_at_most(tmp_path: Path, text: str) -> None:
    """Long lines, quotes that are never closed and deep nesting end soon, in one short line."""
    begun = time.process_time()
    (line,) = problems(tmp_path, text)
    assert time.process_time() - begun < 5.0
    assert len(line) < 300


def test_many_problems_are_cut(tmp_path: Path) -> None:
    """A wrong list does not fill the screen."""
    found = problems(tmp_path, "exits: [" + "x," * 50 + "]")
    assert (len(found), found[-1].endswith("and 30 more")) == (21, True)


@pytest.mark.parametrize(("mode", "safe"), [(0o640, True), (0o644, True), (0o664, False), (0o646, False)])
def test_a_file_that_others_may_change_is_refused(tmp_path: Path, mode: int, safe: bool) -> None:
    """Whoever writes the configuration decides what a process of root's does."""
    path = tmp_path / "exitprint.yml"
    path.write_text("interval: 10s\n")
    path.chmod(mode)
    if safe:
        assert load_config(path)
    else:
        with pytest.raises(
            ConfigError, match=f"others may change it .its mode is {mode:04o}.; expected chmod"
        ):
            load_config(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot give files away")
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    """Its owner could change it at any time."""
    path = tmp_path / "exitprint.yml"
    path.write_text("interval: 10s\n")
    os.chown(path, 65_534, 65_534)
    with pytest.raises(ConfigError, match="belongs to user 65534; expected chown root"):
        load_config(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.text(max_size=40) | st.text("abw:[]{}-&*!|>'\"\n 0.,", max_size=40))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    """No text ends in anything but a configuration or its problems."""
    try:
        load(tmp_path, text.encode(errors="surrogatepass"))
    except ConfigError as error:
        assert error.problems


def test_check_config(tmp_path: Path) -> None:
    """`check-config` says that a file is valid, and passes on what is wrong with one."""
    path = tmp_path / "exitprint.yaml"
    path.write_text(WHOLE)
    done = CliRunner().invoke(check_config, [str(path)])
    assert (done.exit_code, done.output) == (0, f"{path}: valid\n")
    path.write_text("hook: xdp\n")
    assert isinstance(CliRunner().invoke(check_config, [str(path)]).exception, ConfigError)
