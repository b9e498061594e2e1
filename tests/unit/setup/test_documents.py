"""The documents name files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/*.md")),
]


def anchors(page: Path) -> list[str]:
    """Return what headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_exist(page: Path) -> None:
    rooms = {path.name for path in (ROOT / "lepton_mpi").iterdir() if path.is_dir()} - {"__pycache__"}
    example = "squeeze"  # files that docs/extending.md would make
    for name in re.findall(r"`(?:lepton_mpi/)?((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|cpp|hpp))`", page.read_text()):
        if name.split("/")[0] in rooms and example not in name:
            assert (ROOT / "lepton_mpi" / name).exists(), name
        elif name.startswith(("kernels/", "tests/", "scripts/", "examples/")):
            assert (ROOT / name).exists(), name
