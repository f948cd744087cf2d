"""What mkdocstrings has to be told of this package: folders mapped into it, and how its docstrings name objects."""

from __future__ import annotations

import re

import griffe

FOLDERS = ("benchmarks", "export", "pose_references", "quantize")
"""Beside the package, and part of it once installed (``package-dir`` in pyproject.toml)."""
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Makes mapped folders subpackages, and Sphinx's roles (``:func:`detect_poses```) links."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: object) -> None:
        if pkg.path == "img2pose_edge":
            for folder in FOLDERS:
                pkg.set_member(folder, loader.load(folder))

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda found: link(obj, found[1]), obj.docstring.value)


def link(obj: griffe.Object, name: str) -> str:
    """HTML of a link, or plain text if no page documents what it names."""
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name  # a full path
    return f'<autoref identifier="{path}" optional><code>{name.rpartition(".")[2]}</code></autoref>'
