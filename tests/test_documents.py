"""Documents and comments: links lead to files, named commands have their flags and files, the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

from paths import ROOT

from configs import base

DOCUMENTS = [
    file for pattern in ("*.md", "docs/*.md", "tests/*/*.md", "lbdt_jax/*/*.md") for file in ROOT.glob(pattern)
]
#: Docstrings and messages name commands, too.
FOLDERS = ("benchmarks", "configs", "input_pipeline", "launch", "lbdt_jax")
SOURCES = [file for folder in FOLDERS for pattern in ("*.py", "*.sh") for file in (ROOT / folder).rglob(pattern)]

COMMAND = re.compile(
    r"python (?:-m (?P<module>(?:lbdt_jax|input_pipeline)(?:\.\w+)+)|(?P<script>\w+/\w+\.py))(?P<rest>[^\n`]*)"
)
FLAG = re.compile(r"(?<![\w-])--(\w+)")
CONFIG_FIELD = re.compile(r"--config\.([a-z_.]*[a-z_])")
FILE = re.compile(r"(?<![\w/])(?:configs|launch|benchmarks)/\w+\.(?:py|sh)")

FIELDS = {*base.get_config(), *(f"model.{field}" for field in base.get_config().model)}


def flags_of(path: str) -> set[str]:
    """The flags of a command, read from its source: that of a module, or a script's path."""
    file = ROOT / path
    if file.suffix != ".py":
        file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    text = file.read_text()
    defined = re.findall(r'(?:\bDEFINE_\w+|\badd|\badd_argument)\(\s*"(?:--)?(\w+)"', text)
    return {*defined, *(["config"] if "define_config_flag(" in text else [])}


def anchors(document: Path) -> set[str]:
    """Those that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_lead_to_files_and_headings() -> None:
    links = [(file, link) for file in DOCUMENTS for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text())]
    assert len(links) > 30
    local = [(file, link) for file, link in links if not re.match(r"https://[\w.-]+/", link)]
    missing = []
    for file, link in local:
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{file.name}: {link}")
    assert not missing


def test_commands_have_their_flags_and_files() -> None:
    unknown, commands = [], 0
    for file in DOCUMENTS + SOURCES:
        text = re.sub(r"\s*\\\n\s*", " ", file.read_text()).replace("python -m", "\npython -m")  # one command a line
        for command in COMMAND.finditer(text):
            commands += 1
            path = command["script"] or command["module"].replace(".", "/")
            unknown += [f"{file.name}: {path} --{flag}" for flag in set(FLAG.findall(command["rest"])) - flags_of(path)]
        unknown += [f"{file.name}: --config.{field}" for field in set(CONFIG_FIELD.findall(text)) - FIELDS]
        unknown += [f"{file.name}: {path}" for path in FILE.findall(text) if not (ROOT / path).exists()]
    assert commands > 50
    assert not unknown


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
