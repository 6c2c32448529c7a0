"""The pages of the site: their examples are run, and what they name exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .page import headings
from .sites import needs_lftp
from .test_readme import archive, run  # noqa: F401

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ARCHIVE = "sftp://archive/~/project"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def project(archive):  # noqa: F811
    """The README's archive with a table, and the working directory."""
    (archive / "project/table.csv").write_text("x,y\n1,2\n3,4\n")
    return archive / "project"


def test_the_first_page_moves_what_it_says(project):
    for line in blocks("index.md", "bash")[0].splitlines():
        run(["sh", "-c", line])
    assert Path("data/a.bin").read_bytes() == (project / "a.bin").read_bytes()
    assert Path("data/images/2.png").read_bytes() == (project / "images/2.png").read_bytes()
    assert run([sys.executable, "-c", blocks("index.md", "python")[0]]) == "['1.png', '2.png']\n"
    assert (project / "results/b.bin").read_bytes() == (project / "b.bin").read_bytes()


def test_the_cells_of_the_notebook_page_run_one_after_the_other(project):
    printed = run([sys.executable, "-c", "\n".join(blocks("guides/notebooks.md", "python"))])
    image_bytes = sum(file.stat().st_size for file in (project / "images").iterdir())
    assert printed.splitlines() == [
        "['a.bin', 'b.bin', 'images', 'results', 'table.csv']",
        "['images/1.png', 'images/2.png']",
        f"12 False {image_bytes}",
        "x,y",
        f"{ARCHIVE}/images/1.png 5012",
        f"{ARCHIVE}/images/2.png 5012",
        "2",
    ]
    assert Path("data/b.bin").read_bytes() == (project / "b.bin").read_bytes()
    assert (project / "results/table.csv").read_text() == "x,y\n1,2\n3,4\n"


def test_old_scripts_run_as_their_page_says(project, monkeypatch):
    monkeypatch.setenv("PYREMOTEDATA_REMOTE_URI", "archive")
    old, new = blocks("guides/from-pyremotedata.md", "python")
    images = ["images/1.png", "images/2.png"]
    names = "['a.bin', 'b.bin', 'images', 'results', 'table.csv']"
    monkeypatch.setenv("PYREMOTEDATA_LOCAL_DIRECTORY", ".")
    Path("data").mkdir()
    assert run([sys.executable, "-c", old]).splitlines() == [names, *images]
    assert Path("data/a.bin").read_bytes() == (project / "a.bin").read_bytes()
    assert run([sys.executable, "-c", new]).splitlines() == [f"{ARCHIVE}/{i}" for i in images]


def test_the_cache_is_used_and_looked_after_as_its_page_says(project):
    size = (project / "a.bin").stat().st_size
    printed = run([sys.executable, "-c", blocks("concepts/cache.md", "python")[0]])
    assert printed == f"a.bin {size}\n"
    for line in blocks("concepts/cache.md", "bash")[0].splitlines():
        run(["sh", "-c", line])


@needs_lftp
def test_ftp_urls_serve_as_their_page_says(ftp, tmp_path, monkeypatch):
    ftp.make("project/a.bin", b"abc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYREMOTEDATA_PASSWORD", ftp.password)
    for line in blocks("guides/ftp.md", "bash")[0].splitlines():
        command = line.replace("ftp://me@ftp.example.org/", ftp.url())
        run([str(Path(sys.executable).with_name("pyremotedata")), *command.split()[1:]])
    assert (ftp.root / "project/copy/a.bin").read_bytes() == b"abc"


def test_every_file_that_a_page_is_to_show_is_shown():
    pages = {page: page.read_text() for page in DOCS.rglob("*.md")}
    titled = [
        named
        for text in pages.values()
        for named in re.findall(r'^```.*title="(.*)"\n(.*)', text, re.M)
    ]
    assert len(titled) == 3
    for file, line in titled:
        assert line == f'--8<-- "{file}"'  # a formatter has taken it for an expression of Python
        assert (ROOT / file).is_file()


def test_every_public_name_is_in_the_reference_and_completed():
    import dask_plugin
    import pyremotedata_core

    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: (\w+\.\w+)$", text, re.MULTILINE))
    assert documented == {
        f"{package.__name__}.{name}"
        for package in (pyremotedata_core, dask_plugin)
        for name in package.__all__
        if name != "__version__"
    }
    for package in (pyremotedata_core, dask_plugin):  # which completion offers, and nothing else
        assert dir(package) == sorted(package.__all__)


def test_the_benchmarks_take_the_arguments_of_their_page():
    page = (DOCS / "performance/index.md").read_text()
    commands = re.findall(r"-m benchmarks\.(\w+)(.*)", page)
    assert len(commands) == 3
    for name, arguments in commands:
        files = (ROOT / "benchmarks" / f"{one}.py" for one in (name, "outcome"))
        source = "".join(file.read_text() for file in files)
        for option in re.findall(r"--[\w-]+", arguments):
            assert f'"{option}"' in source


def test_every_test_that_the_security_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (DOCS / "security.md").read_text())
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), (
            f"{file}::{test}"
        )


def test_every_line_of_the_troubleshooting_page_is_provoked_by_a_test():
    """By one that compares what was printed, with `told`."""
    parts = [part for test in (ROOT / "tests").glob("test_*.py") for part in lines_told(test)]
    lines = headings()
    assert len(lines) > 50
    assert [line for line in lines if not any(part in line for part in parts)] == [
        "file locks do not hold in …",  # no file system here is so broken
    ]


def test_every_remedy_for_ssh_is_on_the_troubleshooting_page():
    from pyremotedata_core.errors import _SSH

    remedies = {remedy for _, _, _, remedy in _SSH if remedy}
    assert remedies <= set(headings())


def test_what_the_site_takes_from_the_program_is_all_of_it():
    """The site itself is built by tests/run.sh."""
    from pyremotedata_core.cli.parser import make_parser

    pages = subprocess.run(
        [sys.executable, "-c", "import hooks; [print(part()) for part in hooks.PARTS.values()]"],
        cwd=DOCS,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "| `read_only` " in pages
    assert "%5B is a real [" in pages
    assert "%%" not in pages
    (verbs,) = (a.choices for a in make_parser()._actions if isinstance(a.choices, dict))
    assert not [verb for verb in verbs if f"\n## {verb}\n" not in pages]


def lines_told(test: Path) -> Iterator[str]:
    """Yield the parts of headings that a module of tests compares with what was printed."""
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "told":
            words = ast.walk(node.args[1])
            yield from (word.value for word in words if isinstance(word, ast.Constant))
