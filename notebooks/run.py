"""Run notebooks at full size and write their outputs: ``python notebooks/run.py [NAME ...]``."""

import sys
import warnings
from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def main(names):
    """Execute scripts (all by default) and write the notebooks beside them."""
    scripts = sorted(FOLDER.glob("[0-9]*.py"))
    for script in scripts:
        if names and script.stem not in names:
            continue
        notebook = jupytext.read(script)
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
        resources = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=3600, resources=resources).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                shown = [o for o in cell.outputs if o.get("name") != "stderr"]
                cell.outputs = shown
        jupytext.write(notebook, script.with_suffix(".ipynb"))
        print(f"{script.with_suffix('.ipynb').name} written")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
