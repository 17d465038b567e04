"""How does the tutorial become a notebook? Its text and its commands become cells, in the page's order.

    python -m docs.make.notebook

Writes docs/tutorial.ipynb from docs/tutorial.md. A block that is marked `bash` becomes a cell. What only a
notebook shows stands in the page in a comment that begins with the word `notebook`.
"""

import re
from collections.abc import Iterator

import nbformat
from nbformat import NotebookNode, v4

from benchmarks import report
from pipelines.installation import PROJECT_FOLDER

PAGE = PROJECT_FOLDER / "docs" / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
_CODE = re.compile(
    r"^```bash\n(?P<shell>.*?)^```$|^<!-- notebook\n(?P<python>.*?)^-->$", re.MULTILINE | re.DOTALL
)
_VARIABLE = re.compile(r"(\w+=\S+)\n")


def notebook(page: str) -> NotebookNode:
    """The page as a notebook, the same each time."""
    cells = list(_cells(page))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made: NotebookNode = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    return made


def _cells(page: str) -> Iterator[NotebookNode]:
    end = 0
    for code in _CODE.finditer(page):
        if text := page[end : code.start()].strip():
            yield v4.new_markdown_cell(text)
        yield v4.new_code_cell(_source(code).rstrip("\n"))
        end = code.end()
    if text := page[end:].strip():
        yield v4.new_markdown_cell(text)


def _source(code: re.Match[str]) -> str:
    if code["python"] is not None:
        return code["python"]
    # Each cell of a shell is a shell of its own, and all know what the notebook's environment has.
    variable = _VARIABLE.fullmatch(code["shell"])
    return f"%env {variable[1]}" if variable else f"%%bash\n{code['shell']}"


def main() -> None:
    report.parser(__doc__).parse_args()
    NOTEBOOK.write_text(nbformat.writes(notebook(PAGE.read_text())) + "\n")


if __name__ == "__main__":
    main()
