"""The corpus as a table; ``PYTHONPATH=.:tests python -m corpus.table`` writes it to docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

from corpus.fault import Fault, Rejected, Warned
from corpus.faults import FAULTS, GROUPS
from corpus.manifests import MANIFESTS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- corpus: written by tests/corpus/table.py -->", "<!-- end of corpus -->"


def section() -> str:
    """All between the marks."""
    kinds = [type(fault.outcome).__name__.lower() for fault in FAULTS]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("rejected", "warned", "processed"))
    parts = [
        f"{len(FAULTS)} inputs: {counts}. {len(MANIFESTS)} manifests beside them are not in the table.\n"
    ]
    for name, faults in GROUPS.items():
        parts.append(f"### {name}\n")
        parts.append("| input | what it is | outcome | what is said |\n| --- | --- | --- | --- |")
        parts += [_row(fault) for fault in faults]
        parts.append("")
    return "\n".join(parts)


def _row(fault: Fault) -> str:
    said = fault.outcome.says if isinstance(fault.outcome, Rejected | Warned) else ""
    pattern = f"`` {said} ``".replace("|", "\\|") if said else ""
    return f"| {fault.name} | {fault.what} | {fault.outcome} | {pattern} |"


def replaced(document: str) -> str:
    """The document with the table as the corpus is now."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text()))
