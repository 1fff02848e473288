"""``edda lint``: what a replay would not do again, with file and line, why, and what to write instead."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edda.cli.lint.check import check_file, files_of
from edda.cli.output import AsJson, print_json

app = typer.Typer(add_completion=False)


@app.command()
def lint(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, folders or modules; default: what is here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find calls in workflows that a replay would answer otherwise. Exit code 1 if there are any."""
    files = files_of(paths or ["."], Path.cwd())
    findings = [finding for file in files for finding in check_file(file)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for one in findings:
            typer.echo(
                f"{one.file}:{one.line}:{one.column}: [{one.code}] {one.what} in workflow {one.workflow!r}: {one.why}. "
                f"Write instead: {one.instead}"
            )
        if findings:
            typer.echo("'# edda: allow' on a line silences it.", err=True)
        else:
            typer.echo(f"Nothing found in {len(files)} files.")
    if findings:
        raise typer.Exit(1)
