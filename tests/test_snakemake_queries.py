"""Queries of the Snakemake plugin: what they mean, and where their local copies lie."""

from __future__ import annotations

import logging
import re
import shlex
from types import SimpleNamespace

import pytest

pytest.importorskip("snakemake")

from snakemake.io import apply_wildcards, regex_from_filepattern
from snakemake_storage_plugin_pyremotedata import (
    StorageObject,
    StorageProvider,
    StorageProviderSettings,
)
from snakemake_storage_plugin_pyremotedata import query as queries
from snakemake_storage_plugin_pyremotedata.settings import (
    connection_settings,
    requests_per_second,
)

from pyremotedata_core import ConfigurationError

from .command import python


@pytest.fixture
def provider(tmp_path):
    return StorageProvider(local_prefix=tmp_path / "local", logger=logging.getLogger("test"))


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("sftp://h/a.txt", "/a.txt"),
        ("sftp://h/a b#c?d.txt", "/a b#c?d.txt"),
        ("sftp://h/a%20b%23c%3Fd.txt", "/a b#c?d.txt"),
        ("sftp://h/100%25/%2541", "/100%/%41"),
        ("sftp://h/~/x", "/~/x"),
        ("sftp://h//a/./b/../c/", "/a/c"),
        ("sftp://h/%7Bno%7D", "/{no}"),
        ("sftp://h/%ff%0A", "/\udcff\n"),
        ("pyremotedata+sftp://h/é.txt", "/é.txt"),
        ("ftp://h/a", "/a"),
    ],
)
def test_a_query_means_the_same_however_often_it_is_rewritten(provider, query, path):
    assert provider.is_valid_query(query)
    once = provider.postprocess_query(query)
    assert queries.to_url(query).path == path
    assert queries.to_url(once) == queries.to_url(query)
    assert provider.postprocess_query(once) == once
    assert queries.from_url(queries.to_url(query)) == once
    assert queries.local_suffix(once) == queries.local_suffix(query)
    assert once.isprintable()


def test_a_local_path_shows_the_name_of_the_file():
    assert queries.local_suffix("sftp://erda/a%20b/c#d.txt") == "erda/a b/c#d.txt"
    assert queries.local_suffix("sftp://me@erda:2222/~/x") == "me@erda+2222/~/x"
    assert queries.local_suffix("ftps://erda/x") == "erda+ftps/x"


def test_different_files_have_different_local_paths():
    files = [
        *("sftp://h/a", "sftp://h:22/a", "sftp://h:2222/a", "ftp://h/a", "ftps://h/a"),
        *("sftp://u@h/a", "sftp://v@h/a", "sftp://h_22/a", "sftp://h/~/a", "sftp://[::1]/a"),
        *("sftp://__1/a", "sftp://[::1]:22/a", "sftp://h/a%2520b", "sftp://h/a%20b"),
        *("sftp://u%40h@g/a", "sftp://h%2B22@g/a", "sftp://sftp/a", "ftp://sftp:2/a"),
    ]
    suffixes = [queries.local_suffix(file) for file in files]
    assert len(set(suffixes)) == len(files), sorted(suffixes)
    servers = [suffix.split("/")[0] for suffix in suffixes]
    assert not any(re.search(r"[^\w.@+=%-]", server) for server in servers), servers


@pytest.mark.parametrize("name", ["a b", "100%41", "50%", "{x}", "#?", "\udcff\n", "é%0A", "~"])
def test_what_a_wildcard_catches_leads_back_to_the_same_file(name):
    pattern = "sftp://h/d%20d/{sample}%20x.txt"
    wanted = queries.to_url("sftp://h/d d/").join(f"{name} x.txt")
    local = queries.local_suffix(queries.from_url(wanted))
    match = re.match(regex_from_filepattern(queries.local_suffix(pattern)), local)
    assert match is not None
    back = apply_wildcards(queries.canonical(pattern), match.groupdict())
    assert queries.to_url(back) == wanted
    assert queries.local_suffix(back) == local


def test_constraints_of_wildcards_stay_as_they_are():
    query = r"sftp://h/a%20b/{sample,[^/?#%]+\d{2}}/{unit,x//y|..}.txt"
    assert queries.canonical(query) == query.replace("%20", " ")
    assert queries.local_suffix(query) == query.replace("%20", " ").replace("sftp://", "")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sftp://u:s3cret@h/a", "password does not belong"),
        ("s3://bucket/key", "unknown scheme"),
        ("data/a.txt", "not a URL"),
        ("sftp:///a", "names no host"),
        ("sftp://h:99999/a", "port"),
        ("sftp://h", "names no file"),
        ("sftp://h/", "names no file"),
        ("sftp://h/~/", "names no file"),
        ("sftp://h/a/..", "names no file"),
        ("sftp://{host}/a", "in the path only"),
        ("sftp://h/{a}/../b", "wildcard"),
        ("sftp://h/a%00b", "NUL"),
        ("sftp://h/\ud800", "characters"),
        ("sftp://-oProxyCommand=x/a", "host"),
        ("", "not a URL"),
    ],
)
def test_an_invalid_query_is_refused_with_the_reason(provider, query, reason):
    result = provider.is_valid_query(query)
    assert not result
    assert reason in result.reason
    assert "s3cret" not in str(result)
    assert "s3cret" not in provider.safe_print(query)
    assert not provider.is_valid_query(provider.postprocess_query(query))
    of_class = type(provider).is_valid_query(query)
    assert (of_class.valid, of_class.reason) == (False, result.reason)


def test_example_queries_are_valid(provider):
    assert all(provider.is_valid_query(example.query) for example in provider.example_queries())


@pytest.mark.parametrize(
    ("query", "directory", "levels"),
    [
        ("sftp://h/d/{s}.txt", "/d", None),
        ("sftp://h/d/a_{s,[^/]+}.txt", "/d", 1),
        (r"sftp://h/d/{s,\w+}/x/{t,\d{3}|[A-Z]x?}.txt", "/d", 3),
        ("sftp://h/d/{s,[+-9]+}.txt", "/d", None),
        ("sftp://h/d/{s,a/b}.txt", "/d", None),
        ("sftp://h/d/{s,[^x]+}.txt", "/d", None),
        ("sftp://h/{s,[^/]+}", "/", 1),
    ],
)
def test_a_search_goes_as_deep_as_the_wildcards_can_reach(query, directory, levels):
    assert queries.constant_directory(query).path == directory
    assert queries.levels_below(query) == levels


def test_settings_mean_what_the_cores_mean(monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_CONNECTIONS", "7")
    monkeypatch.setenv("PYREMOTEDATA_TIMEOUT", "5")
    got = connection_settings(
        StorageProviderSettings(
            username="me", host="erda", port="2222", timeout="30", bandwidth="1M", accept_new="yes"
        )
    )
    assert (got.username, got.host, got.port) == ("me", "erda", 2222)
    assert (got.connections, got.timeout_s, got.accept_new) == (7, 30.0, True)
    assert got.bandwidth == 2**20


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (connection_settings, {"connections": "many"}),
        *((requests_per_second, {"max_requests_per_second": limit}) for limit in ("x", "0", "nan")),
    ],
)
def test_a_wrong_setting_is_named(read, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigurationError, match=f"{name} is not valid: '{value}'"):
        read(StorageProviderSettings(**wrong))


def test_no_setting_is_a_secret():
    names = " ".join(vars(StorageProviderSettings()))
    assert not re.search("pass|secret|token|phrase", names)


def test_tagged_settings_reach_cluster_jobs_as_they_were_given():
    import configargparse
    from snakemake.spawn_jobs import SpawnedJobArgsFactory
    from snakemake_interface_storage_plugins.registry import StoragePluginRegistry

    def read(arguments):
        parser = configargparse.ArgumentParser()
        StoragePluginRegistry().register_cli_args(parser)
        plugin = StoragePluginRegistry().get_plugin("pyremotedata")
        return plugin.get_settings(parser.parse_args(arguments))

    given = read(["--storage-pyremotedata-username", "me", "other::you"])
    workflow = SimpleNamespace(storage_provider_settings={"pyremotedata": given})
    arguments = " ".join(SpawnedJobArgsFactory(workflow).get_storage_provider_args())
    again = read(shlex.split(arguments))
    assert again.get_settings(None).username == "me"
    assert again.get_settings("other").username == "you"


def test_no_limit_of_requests_unless_the_user_sets_one(provider, tmp_path):
    assert not provider.use_rate_limiter()
    limited = StorageProvider(
        local_prefix=tmp_path,
        logger=logging.getLogger("test"),
        settings=StorageProviderSettings(max_requests_per_second=3),
    )
    assert limited.use_rate_limiter()
    assert isinstance(limited.object("sftp://h/a"), StorageObject)


def test_importing_the_plugin_loads_no_engine_and_needs_no_programs(tmp_path):
    code = (
        "import sys; sys.modules['paramiko'] = None; sys.modules['yaml'] = None\n"
        "import snakemake_storage_plugin_pyremotedata as plugin, logging, pathlib\n"
        "p = plugin.StorageProvider(local_prefix=pathlib.Path('x'), logger=logging.getLogger())\n"
        "for scheme in ('sftp', 'ftps'):\n"
        "    p.object(f'{scheme}://h/{{a}}.txt').local_path()\n"
        "heavy = {'pyremotedata_core.engine', 'pyremotedata_core.ssh', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    python(code, env={"PATH": "/nowhere"}, cwd=tmp_path)
