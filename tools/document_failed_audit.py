"""Writes docs/audit-failed.md and its flow chart, docs/images/audit-failed.svg, from one list of questions.

    python tools/document_failed_audit.py

A test fails where they differ from what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CHART = DOCS / "audit-failed.md", DOCS / "images" / "audit-failed.svg"


@dataclass(frozen=True)
class Question:
    """One step of the chart; no answer leads to the next one.

    Attributes:
        ask: What to look at, lines of the left box.
        do: What to do if so, lines of the right box.
        more: The same in the page's words, Markdown.
    """

    ask: tuple[str, ...]
    do: tuple[str, ...]
    more: str


QUESTIONS = (
    Question(
        ("Status 2:", "the command ended with an error?"),
        ("Do what its hint says;", "run doctor"),
        "The message has a hint and, where an engine died, names its log in `RUN/logs`. `mismatch-probe "
        "doctor` checks packages and machine. `audit --resume` goes on where it stopped.",
    ),
    Question(
        ("Status 3:", "nothing could be concluded?"),
        ("More prompts; look at", "the named sequences"),
        "`MP902`: too few tokens or prompts; raise `--num-prompts`. `MP102`: values that are no "
        "log-probabilities; the finding names the side and the sequences.",
    ),
    Question(
        ("A finding MP101 to MP111", "of severity error?"),
        ("A bug: mend it first;", "no number is to be trusted"),
        "Shifted tokens, another temperature, truncated support, swapped rows: read `mismatch-probe explain "
        "MP105` (with your code) and audit again. Numbers after it are marked as not to be trusted. `MP109` "
        "is information, not an error.",
    ),
    Question(
        ("MP601, MP602 or MP603:", "the weight update?"),
        ("A fresh engine per update,", "or another update path"),
        "The engine's own reload changes or breaks it. `mismatch-probe ablate RUN --knob refit` repeats it "
        "alone and names the tensors ([ablation](ablation.md)). The drift itself was read before and keeps "
        "its own verdict.",
    ),
    Question(
        ("MP204: rollout/decode and", "rollout/prefill differ?"),
        ("Turn the rollout's knobs:", "ablate"),
        "The engine disagrees with itself: batching, caches, kernels, quantisation. `mismatch-probe ablate "
        "RUN` turns one knob at a time on the run's own tokens.",
    ),
    Question(
        ("MP402: replay of experts", "removes much of it?"),
        ("Routing replay (R3),", "then audit again"),
        "The two sides chose other experts. Training with the rollout's experts removes what the finding "
        "states; [routing](routing.md) has the layers.",
    ),
    Question(
        ("MP605 or a named cause", "(MP620 to MP690)?"),
        ("Mend what it names:", "explain, locate"),
        "`mismatch-probe explain stale-weights` (with your cause) says symptom, test and mend; all are in the "
        "[catalogue](causes.md). `mismatch-probe locate RUN` finds the layer and module where hidden states "
        "part ([locate](locate.md)).",
    ),
    Question(
        ("MP201, MP202, MP203, MP205:", "drift without a named cause?"),
        ("ablate the trainer's knobs,", "then locate"),
        "Compare the step `train/forward -> train/reference` with the total: as large, and precision explains "
        "it. Else `mismatch-probe ablate RUN` and `mismatch-probe locate RUN`.",
    ),
    Question(
        ("MP301 to MP303, MP501, MP502:", "only the weights suffer?"),
        ("simulate, tune, export", "a correction"),
        "The drift is small per token and adds up over the response. `mismatch-probe simulate RUN` compares "
        "all corrections, `tune` fits one, `export` writes it into a training config "
        "([corrections](corrections.md)).",
    ),
)

_STEP, _BOX, _WIDTH = 74, 46, 720
_ASK, _DO = (20, 300), (430, 270)


def chart() -> str:
    """The flow chart as SVG that reads in light and dark."""
    height = _STEP * (len(QUESTIONS) + 1) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-labelledby="title desc" font-family="sans-serif" font-size="13">',
        '<title id="title">My audit failed, what now</title>',
        '<desc id="desc">Questions from top to bottom; yes leads right to what to do, no leads to the next question. '
        "The list on the page says the same in words.</desc>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for place, question in enumerate(QUESTIONS):
        top = 20 + place * _STEP
        parts += [
            _box(_ASK, top, question.ask, "#dbe9f7", "#0b5cad"),
            _box(_DO, top, question.do, "#fbe6d3", "#b34700"),
            _arrow(sum(_ASK), top + _BOX / 2, _DO[0], top + _BOX / 2, "yes", sum(_ASK) + 45, top + 18),
            _arrow(170, top + _BOX, 170, top + _STEP, "no", 182, top + _BOX + 18),
        ]
    end = ("None of them: read the report's", "verdict; no bar was passed over")
    parts += [_box(_ASK, 20 + len(QUESTIONS) * _STEP, end, "#dff1e2", "#0a7a55"), "</svg>"]
    return "\n".join(parts) + "\n"


def _box(span: tuple[int, int], top: int, lines: tuple[str, ...], fill: str, edge: str) -> str:
    left, width = span
    text = "".join(
        f'<tspan x="{left + width // 2}" y="{top + 19 + 17 * n}">{escape(line)}</tspan>'
        for n, line in enumerate(lines)
    )
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{_BOX}" rx="6" fill="{fill}" stroke="{edge}"/>'
        f'<text text-anchor="middle" fill="#1b1f24">{text}</text>'
    )


def _arrow(x: float, y: float, to_x: float, to_y: float, word: str, word_x: float, word_y: float) -> str:
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="#57606a" marker-end="url(#arrow)"/>'
        f'<text x="{word_x}" y="{word_y}" fill="#57606a">{word}</text>'
    )


def page() -> str:
    """The page, Markdown."""
    steps = "\n".join(
        f"{number}. **{' '.join(question.ask)}** {' '.join(question.do)}. {question.more}"
        for number, question in enumerate(QUESTIONS, 1)
    )
    return f"""\
# My audit failed, what now

Take the first question whose answer is yes. Codes stand in the terminal's table of findings, in `report.html` and in
`result.json` under `findings`; `mismatch-probe explain MP201` says what one means.

![Flow chart: nine questions from top to bottom, each with what to do; the list below says the same](images/audit-failed.svg)

{steps}

After a change: audit again into another directory, with the same prompts. A failing finding states the bar,
what was observed and what it would pass at; bars can be set (`--set bars.k3_over_rounding=2`), and result.json
carries those in use.

Written by `tools/document_failed_audit.py`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CHART.write_text(chart(), encoding="utf-8")
