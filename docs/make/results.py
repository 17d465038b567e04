"""How do the tables of docs/results, and those in the cards of shipped networks, get into these pages? Each
stands between two marks, of which the first one names the function of an experiment that makes the table from
the records.

    python -m docs.make.results

The rest of a page is written by hand.
"""

import re
from importlib import import_module

from benchmarks import report
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import SHIPPED_FOLDER

PAGES = sorted([*(PROJECT_FOLDER / "docs" / "results").glob("*.md"), *SHIPPED_FOLDER.glob("*/README.md")])
_PART = re.compile(r"(<!-- (benchmarks\.[\w.]+)\.(\w+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with its tables as the records say now."""

    def renewed(part: re.Match[str]) -> str:
        begin, module, function, end = part.groups()
        return f"{begin}{getattr(import_module(module), function)()}{end}"

    return _PART.sub(renewed, page)


def main() -> None:
    report.parser(__doc__).parse_args()
    for path in PAGES:
        page = path.read_text()
        if (renewed := filled(page)) != page:
            path.write_text(renewed)
            print(path)


if __name__ == "__main__":
    main()
