"""What must hold of settings whatever their values are: who wins, what is refused, what is told."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pyremotedata_core import ConfigurationError, ConnectionSettings, RemoteURL, Secret
from pyremotedata_core.config import SECRETS, VARIABLES, parse_bytes
from pyremotedata_core.interactive import _document

from . import test_properties  # noqa: F401 - its profile is that of this file, too

CANARY = "canary-7f3a"
NAME_OF = {key: f"PYREMOTEDATA_{suffix}" for suffix, key in VARIABLES.items()}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
WORDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
PATHS = TEXTS.filter(lambda text: not text.startswith("~"))
SECRET_TEXTS = TEXTS.filter(lambda text: "\n" not in text)
COUNTS = st.integers(1, 10**12)
VALUES = {
    "username": WORDS,
    "host": WORDS,
    "port": st.integers(1, 65535),
    "directory": WORDS.map(lambda word: f"/{word}").filter(lambda path: path not in ("/.", "/..")),
    "local_directory": PATHS,
    "password": SECRET_TEXTS,
    "key_passphrase": SECRET_TEXTS,
    "ssh_config": PATHS,
    "ssh_key": PATHS,
    "accept_new": st.booleans(),
    "ftps_mode": st.sampled_from(["auto", "explicit", "implicit"]),
    "ca_file": PATHS,
    "transport": st.sampled_from(["auto", "sftp", "lftp"]),
    "carrier": st.sampled_from(["auto", "openssh", "paramiko"]),
    "connections": st.integers(1, 1000),
    "timeout_s": st.floats(0.001, 10**6),
    "bandwidth": COUNTS,
    "fsync": st.booleans(),
    "publish": st.sampled_from(["rename", "direct"]),
    "cache_dir": PATHS,
    "cache_bytes": COUNTS,
}
SOME = st.fixed_dictionaries({}, optional=VALUES)
DEFAULTS = ConnectionSettings()


@contextlib.contextmanager
def configured(variables=(), **settings):
    """A config file with these settings, and these variables."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "config.yaml"
        named = {"PYREMOTEDATA_CONFIG": str(path), "PYREMOTEDATA_CACHE_DIR": ""}
        with mock.patch.dict(os.environ, {**named, **dict(variables)}):
            path.write_text(_document(settings), encoding="utf-8")
            path.chmod(0o600)
            yield path


def revealed(settings: ConnectionSettings) -> dict:
    return {
        key: value.reveal() if isinstance(value, Secret) else value
        for key, value in settings.__dict__.items()
    }


def refusal() -> str | None:
    """Load the settings; return what is said of them if they are refused."""
    try:
        ConnectionSettings.load()
    except ConfigurationError as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    assert len(said) < 500
    return said


@given(SOME, SOME, SOME)
def test_arguments_win_over_the_environment_and_that_over_the_file(from_file, from_env, arguments):
    variables = {NAME_OF[key]: str(value) for key, value in from_env.items()}
    with configured(variables, **from_file):
        settings = ConnectionSettings.load(**arguments)
    assert revealed(settings) == {**revealed(DEFAULTS), **from_file, **from_env, **arguments}


@given(SOME, WORDS, st.none() | WORDS, st.none() | st.integers(1, 65535))
@example({"host": "h", "username": "me", "port": 2222, "password": CANARY}, "h", None, None)
@example({"host": "h", "username": "me", "port": 2222, "password": CANARY}, "h", "you", 1)
@example({"host": "h", "username": "me", "port": 2222, "password": CANARY}, "other", None, None)
def test_a_url_wins_over_all_and_takes_no_secret_of_another_host(given_, host, user, port):
    settings = ConnectionSettings.load(**given_)
    url = RemoteURL("sftp", host, "/x", user, port)
    same = settings.host in (None, host)
    found = settings.for_url(url)
    assert found.host == host
    assert found.username == (user or (settings.username if same else None))
    assert found.port == (port or (settings.port if settings.host == host else None))
    assert found.password == (settings.password if same else None)


@given(SOME)
def test_settings_survive_the_way_to_another_process(given_):
    settings = ConnectionSettings.load(**given_)
    plain = settings.to_plain()
    assert json.loads(json.dumps(plain)) == plain
    again = ConnectionSettings.load(**plain)
    assert again.to_plain() == plain
    assert [getattr(again, key) for key in SECRETS] == [getattr(settings, key) for key in SECRETS]


@given(SOME)
def test_every_line_of_the_file_can_be_read_with_its_comment_sign_taken_away(some):
    with configured(**some) as path:
        text = path.read_text(encoding="utf-8")
    known = {field.name for field in fields(ConnectionSettings)} - {"one_time_code"}
    bare = [f"# {key}:" for key in known - set(some)]
    assert set(bare) <= set(text.splitlines())
    for line in bare:
        text = text.replace(f"\n{line}\n", f"\n{line.removeprefix('# ')}\n")
    assert yaml.safe_load(text) == {**dict.fromkeys(known), **some}


@given(st.integers(0, 2**53), st.sampled_from(["", "k", "M", "G", "T"]))
def test_a_number_of_bytes_is_read_however_its_unit_is_written(count, unit):
    whole = count >> 40
    factor = 1024 ** " kmgt".index(unit.lower() or " ")
    for end in ("", "B", "iB") if unit else ("", "B"):
        for space in ("", " "):
            assert parse_bytes(f" {whole}{space}{unit}{end} ") == whole * factor
    assert parse_bytes(str(count)) == count


@given(TEXTS)
@example("nan")
@example("1e999")
@example("²")
@example("9" * 5000)
def test_what_is_no_number_of_bytes_is_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_bytes(text), int)


@given(st.sampled_from(sorted(set(NAME_OF) - set(SECRETS))), TEXTS)
@example("port", "9" * 5000)
@example("host", f"me:{CANARY}@host")
@example("host", f"sftp://me:{CANARY}@host")
@example("host", "host:2222")
@example("host", "host/directory")
@example("host", "h:" + "0" * 5000)
@example("timeout_s", "nan")
@example("bandwidth", "inf")
def test_a_wrong_variable_is_told_in_one_line_that_names_it(key, text):
    with mock.patch.dict(os.environ, {NAME_OF[key]: text}):
        said = refusal()
        assert said is None or (NAME_OF[key] in said and CANARY not in said)
        if key == "host" and said is None:
            assert ConnectionSettings.load().host == text.strip("[]")


@given(st.sampled_from(SECRETS), TEXTS)
def test_a_wrong_secret_is_never_told(key, text):
    for wrong in (f"{CANARY}\n{text}", f"{text}\n{CANARY}"):
        with (
            mock.patch.dict(os.environ, {NAME_OF[key]: wrong}),
            pytest.raises(ConfigurationError) as told,
        ):
            ConnectionSettings.load()
        assert NAME_OF[key] in str(told.value)
        assert CANARY not in str(told.value)
        assert CANARY not in repr(told.value)


@given(st.binary(max_size=80) | TEXTS.map(str.encode), st.booleans())
@example(b"timeout_s: 2024-99-99", False)
@example(b"port: 0b_", False)
@example(b"[" * 1000, False)
@example(b"\xff\xfe", False)
@example(b"port: " + b"9" * 5000, False)
@example(b"? [a]\n: b", True)
@example(b"a: &x [*x]", True)
@example(b"port: !!python/name:os.system", True)
@example(b"host: a\nhost: b", True)
def test_a_file_of_anything_is_settings_or_one_line_that_names_it(content, secret_first):
    secret = f"password: {CANARY}\n".encode()
    with configured() as path:
        path.write_bytes(secret + content if secret_first else content + b"\n" + secret)
        said = refusal()
        assert said is None or (str(path) in said and CANARY not in said)


@given(st.sampled_from(sorted(VALUES)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
))  # fmt: skip
def test_a_wrong_value_in_the_file_is_told_in_one_line_that_names_its_key(key, value):
    with configured() as path:
        path.write_text(yaml.safe_dump({key: value}), encoding="utf-8")
        said = refusal()
        if said is not None:
            place, _, rest = said.partition(f": {key} ")
            assert place == str(path)
            assert rest.startswith("is not valid")
            assert key not in SECRETS or rest == "is not valid"
