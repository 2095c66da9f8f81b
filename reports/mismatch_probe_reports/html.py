"""The HTML page: one file, no network request, no script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.figures.canvas import Missing, Plot, to_svg
from mismatch_probe_reports.format import clean
from mismatch_probe_reports.model import build_report
from mismatch_probe_reports.reading import Json
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


def render_html(result: Json) -> str:
    """Return the whole page for a result; the same result gives the same bytes."""
    return render_page(result, prepare_figures(result))


def render_page(result: Json, figures: Sequence[Plot | Missing]) -> str:
    """Return the page with figures that were prepared before."""
    return _render("report.html.j2", figures, report=build_report(result))


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
    return _render("part.html.j2", figures, section=section, subject=subject, **foot)


def _render(template: str, figures: Sequence[Plot | Missing], **values: object) -> str:
    from markupsafe import Markup

    # Both are ours: the style sheet is a package file, the drawings escape every string they are given.
    drawings = {figure.name: Markup(to_svg(figure)) for figure in figures if isinstance(figure, Plot)}  # noqa: S704
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            figures={figure.name: figure for figure in figures},
            drawings=drawings,
            style=Markup(_style_sheet()),  # noqa: S704
            policy=CONTENT_SECURITY_POLICY,
        )
    )
