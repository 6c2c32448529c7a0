"""URLs: what is read, what is refused, and what comes out again."""

from __future__ import annotations

import pickle

import pytest

from pyremotedata_core import ConfigurationError, RemoteURL, UnsafeName
from pyremotedata_core.url import looks_like_url, wire_path

from .page import told


@pytest.mark.parametrize(
    ("text", "server", "path"),
    [
        ("sftp://host/a/b", "sftp://host", "/a/b"),
        ("sftp://host", "sftp://host", "/"),
        ("SFTP://host/", "sftp://host", "/"),
        ("sftp://me@host:2222/a", "sftp://me@host:2222", "/a"),
        ("sftp://me%40uni.dk@host/a", "sftp://me@uni.dk@host", "/a"),
        ("sftp://me@uni.dk@host/a", "sftp://me@uni.dk@host", "/a"),
        ("sftp://[::1]:22/a", "sftp://[::1]:22", "/a"),
        ("sftp://[fe80::1%eth0]/a", "sftp://[fe80::1%eth0]", "/a"),
        ("sftp://my_alias.x-y/a", "sftp://my_alias.x-y", "/a"),
        ("pyremotedata+sftp://host/a", "sftp://host", "/a"),
        ("ftp://host/a", "ftp://host", "/a"),
        ("pyremotedata+ftps://host:990/a", "ftps://host:990", "/a"),
    ],
)
def test_a_url_is_read_into_server_and_path(text, server, path):
    url = RemoteURL.parse(text)
    assert url.server == server
    assert url.path == path


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/a%20b", "/a b"),
        ("/a b", "/a b"),
        ("/100%25", "/100%"),
        ("/%2525", "/%25"),  # decoded once
        ("/100%", "/100%"),
        ("/a?b#c", "/a?b#c"),
        ("/a%3Fb%23c", "/a?b#c"),
        ("/a;b!$(c)[d]", "/a;b!$(c)[d]"),
        ("/%E6%97%A5", "/日"),
        ("/日", "/日"),
        ("/%ff", "/\udcff"),
        ("/a%0Ab", "/a\nb"),
        ("/a/./b//c/", "/a/b/c"),
        ("/a/../../b", "/b"),
        ("/a%2F..%2Fb", "/b"),
        ("//a", "/a"),
        ("/~", "/~"),
        ("/~/", "/~"),
        ("/~/a", "/~/a"),
        ("/~/../../a", "/~/a"),
        ("/~x", "/~x"),
        ("/%7E/a", "/~/a"),
    ],
)
def test_a_path_is_decoded_once_and_normalised(written, path):
    assert RemoteURL.parse(f"sftp://h{written}").path == path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("host/a", "not a remote URL"),
        ("/a/b", "not a remote URL"),
        ("", "not a remote URL"),
        ("http://host/a", "unknown scheme 'http'"),
        ("scp://host/a", "unknown scheme"),
        ("sftp:///a", "names no host"),
        ("sftp://me@/a", "names no host"),
        ("sftp://-oProxyCommand=x/a", "not a host name"),
        ("sftp://a b/c", "not a host name"),
        ("sftp://$(x)/c", "not a host name"),
        ("sftp://h\nx/c", "not a host name"),
        ("sftp://-l@host/a", "not a user name"),
        ("sftp://a;b@host/a", "not a user name"),
        ("sftp://a%0Ab@host/a", "not a user name"),
        ("sftp://@host/a", "not a user name"),
        ("sftp://host:0/a", "not a port"),
        ("sftp://host:65536/a", "not a port"),
        ("sftp://host:x/a", "not a port"),
        ("sftp://host:٢٢/a", "not a port"),
    ],
)
def test_what_is_no_url_of_ours_is_refused_by_name(text, names):
    with pytest.raises(ConfigurationError, match=names) as caught:
        RemoteURL.parse(text)
    if names == "not a remote URL":
        told(caught.value, "not a remote URL")


@pytest.mark.parametrize("text", ["sftp://me:canary@host/a", "sftp://me:canary@[::1]:22/a"])
def test_a_password_in_a_url_is_refused_without_repeating_it(text):
    with pytest.raises(ConfigurationError) as caught:
        RemoteURL.parse(text)
    told(caught.value, "a password does not belong in a URL")
    assert "canary" not in str(caught.value)
    assert "me" in str(caught.value)


@pytest.mark.parametrize("text", ["sftp://me:canary/x@host/a", "ftp://me:canary#/@host/"])
def test_nor_is_the_part_of_a_password_before_a_slash(text):
    with pytest.raises(ConfigurationError, match="what follows me: is not a port number") as caught:
        RemoteURL.parse(text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", ["sftp://h/a%00b", "sftp://h/a\0b"])
def test_a_nul_in_a_path_is_refused(text):
    with pytest.raises(UnsafeName, match="NUL"):
        RemoteURL.parse(text)
    with pytest.raises(UnsafeName, match="NUL"):
        RemoteURL.parse("sftp://h/a").join("b\0c")


def test_half_a_character_in_a_path_is_refused():
    with pytest.raises(UnsafeName, match="half a character"):
        RemoteURL.parse("sftp://h/a\ud800")
    with pytest.raises(UnsafeName, match="half a character"):
        RemoteURL.parse("sftp://h/a").join("\ud800")


@pytest.mark.parametrize(
    ("base", "relative", "path"),
    [
        ("/a", "b", "/a/b"),
        ("/a", "b/../c", "/a/c"),
        ("/a", "../../..", "/"),
        ("/a", "/b", "/b"),
        ("/a", "", "/a"),
        ("/a", "b%20c", "/a/b%20c"),  # a path, not a URL: nothing is decoded
        ("/a", "b?c#d", "/a/b?c#d"),
        ("/~", "b", "/~/b"),
        ("/~/a", "../..", "/~"),
        ("/", "a", "/a"),
        ("/", "~", "//~"),  # an entry of the root, not the login directory
        ("/", "~/x", "//~/x"),
    ],
)
def test_a_relative_path_is_joined_as_it_is(base, relative, path):
    assert RemoteURL("sftp", "h", base).join(relative).path == path


def test_a_final_slash_is_remembered_and_no_part_of_identity():
    plain, slashed = RemoteURL.parse("sftp://h/a"), RemoteURL.parse("sftp://h/a/")
    assert plain == slashed
    assert hash(plain) == hash(slashed)
    assert slashed.trailing_slash
    assert not plain.trailing_slash
    assert plain.join("b/").trailing_slash
    assert plain.parent.trailing_slash


def test_the_root_is_its_own_parent():
    root = RemoteURL.parse("sftp://h/")
    assert root.parent == root
    assert RemoteURL.parse("sftp://h/a").parent == root
    assert RemoteURL.parse("sftp://h/~/a").parent.path == "/~"


def test_a_url_pickles_and_is_its_own_parse():
    url = RemoteURL.parse("sftp://me@h:2/a/")
    copy = pickle.loads(pickle.dumps(url))
    assert copy == url
    assert copy.trailing_slash
    assert RemoteURL.parse(url) is url


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/a", b"/a"),
        ("/~", b"."),
        ("/~/a/b", b"a/b"),
        ("/~x", b"/~x"),
        ("//~/x", b"/~/x"),
        ("/\udcff", b"/\xff"),
    ],
)
def test_the_server_sees_paths_below_the_login_directory_as_relative(path, sent):
    assert wire_path(path) == sent


def test_urls_are_told_from_paths():
    assert looks_like_url("sftp://h/a")
    assert looks_like_url("http://h/a")
    assert not looks_like_url("a/b")
    assert not looks_like_url("/a://b")
    assert not looks_like_url("C:\\x")


@pytest.mark.parametrize(
    ("top", "relative", "path"),
    [
        ("/", "a/b", "/a/b"),
        ("/", "~", "//~"),
        ("/", "~/a", "//~/a"),
        ("/", "~a", "/~a"),
        ("/d", "~", "/d/~"),
        ("/~", "~", "/~/~"),
        ("//~", "a", "//~/a"),
    ],
)
def test_an_entry_of_the_root_that_is_called_tilde_is_not_the_login_directory(top, relative, path):
    assert RemoteURL.parse(f"sftp://host{top}").below(relative).path == path
