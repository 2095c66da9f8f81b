"""The HTML page: one file, no network request, and no scripts but those of the copy buttons and the token explorer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.figures.canvas import Drawing, Missing, Plot, to_svg
from mismatch_probe_reports.figures.slim import share_styles
from mismatch_probe_reports.format import clean
from mismatch_probe_reports.model import build_report
from mismatch_probe_reports.reading import Json
from mismatch_probe_reports.sections.explorer import build_explorer
from mismatch_probe_reports.sections.snippets import build_snippets
from mismatch_probe_reports.tables import Section, fold_reasons

if TYPE_CHECKING:
    from jinja2 import Environment

# Nothing is loaded and nothing runs, whatever a model name or a sampled token contains.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mismatch_probe_reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fold_reasons"] = fold_reasons
    return environment


@cache
def _style_sheet() -> str:
    return (files("mismatch_probe_reports") / "assets" / "style.css").read_text(encoding="utf-8")


@cache
def _script(name: str) -> str:
    return (files("mismatch_probe_reports") / "assets" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """The policy that lets this one script run and no other: by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{CONTENT_SECURITY_POLICY}; script-src 'sha256-{digest}'"


def render_html(result: Json, explorer: Json | None = None) -> str:
    """Return the whole page for a result; the same input gives the same bytes.

    Args:
        result: result.json as a mapping.
        explorer: What `explorer_section` of the core read, or None for a page without the explorer.
    """
    return render_page(result, prepare_figures(result), explorer)


def render_page(
    result: Json,
    figures: Sequence[Plot | Missing],
    explorer: Json | None = None,
    drawings: Mapping[str, Drawing] | None = None,
) -> str:
    """Return the page with figures that were prepared before, and drawings of them where they were made."""
    from markupsafe import Markup

    built = None if explorer is None else build_explorer(explorer)
    snippets = build_snippets(result)
    values: dict[str, object] = {
        "report": build_report(result), "explorer": built, "snippets": snippets, "script": "",
    }  # fmt: skip
    # The scripts are package files and hold nothing of the run.
    script = _script("copy.js") if any(snippet.text for snippet in snippets) else ""
    if built is not None and not built.missing:
        script += _script("explorer.js")
    if script:
        values |= {"script": Markup(script), "policy": _policy(script)}  # noqa: S704
    return _render("report.html.j2", figures, drawings or {}, **values)


def render_section_page(
    section: Section, subject: str, figures: Sequence[Plot | Missing], record: Json
) -> str:
    """Return a page of one section.

    Args:
        section: What it shows.
        subject: A line above it.
        figures: Figures that the section names.
        record: Has `run_id`, `created_at`, `tool_version` and `command`, for the foot of the page.
    """
    foot = {key: clean(record.get(key, "")) for key in ("run_id", "created_at", "tool_version", "command")}
    return _render("part.html.j2", figures, {}, section=section, subject=subject, **foot)


def _render(
    template: str, figures: Sequence[Plot | Missing], drawn: Mapping[str, Drawing], **values: object
) -> str:
    from markupsafe import Markup

    # Both are ours: the style sheet is a package file, the drawings escape every string they are given.
    plots = [figure for figure in figures if isinstance(figure, Plot)]
    drawings, rules = share_styles(
        {plot.name: drawn[plot.name].svg if plot.name in drawn else to_svg(plot) for plot in plots}
    )
    return (
        _environment()
        .get_template(template)
        .render(
            {"policy": CONTENT_SECURITY_POLICY} | values,
            figures={figure.name: figure for figure in figures},
            drawings={name: Markup(svg) for name, svg in drawings.items()},  # noqa: S704
            style=Markup(_style_sheet() + rules),  # noqa: S704
        )
    )
