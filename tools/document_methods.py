"""Writes docs/methods.md from what the code says of its methods.

    python tools/document_methods.py

A test fails where the page and the code differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mismatch_probe.weights import FRAMEWORKS, describe_methods
from mismatch_probe.weights.describe import defaults_in_words, in_words

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"

INTRODUCTION = """\
# Corrections

Every correction here is a coefficient phi on A grad log pi(y_t): `get_method(name).coefficients(batch)` gives it, one per
token, and `.loss(batch)` is the policy loss with just that gradient. Symbols: pi is the policy that is differentiated
(train), mu the one that sampled (rollout), pi_old the trainer's at the rollout's weights (old). rho is a token's ratio, W
the product over a response, s = W^(1/T). What a method *reads* decides what it can see: with pi_old recomputed by the
trainer pi / pi_old holds the update alone, and the mismatch is in pi_old / mu.

    from mismatch_probe.weights import Batch, describe_methods, get_method, get_method_as_coded

    get_method("vespo", k_pos=2.0)                 # the paper's formula and defaults
    get_method("geo_rs", variant="verl")           # one difference of one code
    get_method_as_coded("verl", "geo_rs")          # every difference of that code, and its defaults
    describe_methods()                             # this page as data

A **variant** is a value of a hyperparameter that is a word (`variant`, `scope`, `weighting`, `reads`, ...): one difference
between the paper and a code, or between two codes. **As coded** is a set of them: what a framework's own code does by
default under that name. All arithmetic on log-ratios is in float64, whatever the inputs are; phi saturates at exp(690).

Each method has a page with a plot of phi behind its name in the first table. This page is written by
`tools/document_methods.py` from the docstrings of `mismatch_probe/weights`.
"""

DECOUPLED = """\
PPO(r) is r where PPO's clip has a gradient, else 0. Methods with that factor share the hyperparameters `eps_low`,
`eps_high`, `dual_c` (largest r for A < 0) and `clamp` (no gradient where |log r| is larger); they are left out of the
column of defaults where they are 0.2, 0.2, none and none.
"""

AS_CODED = """\
What `get_method_as_coded(framework, name)` changes of the defaults above. Where a framework leaves a number to the user the
one of its examples or ours stands. Read in the source of these versions: """

MISSING = """\
## What is not here

- Signals that are no multiple of A, or whose numbers were not published, are functions in `mismatch_probe.weights.signals`:
  DRO and Kimi's quadratic penalty, OAPL, CIS, Jackpot's budgeted rejection, MinPRO's prefix minimum.
- verl `rollout_rs` of token_k2, token_k3, seq_sum_k2, seq_sum_k3, seq_max_* and lists of several; `clip_cov`, `kl_cov`.
- OpenRLHF gating by total variation, and by divergences averaged over a response; AReaL metric=kl_k1 and kl_k2, agg=max.
- ROLL's segments (agent turns) and its filters of probability differences; ms-swift loss_type fipo and real.
- Score centering and top-k divergences, which need more of the logits than the sampled token's.
"""


def page() -> str:
    """The whole page, Markdown."""
    rows = describe_methods()
    return "\n".join(
        [
            INTRODUCTION,
            f"## All {len(rows)} methods\n",
            DECOUPLED,
            *table(
                ("name", "phi", "reads", "level", "defaults", "source"),
                (
                    (
                        f"[`{r.name}`](methods/{r.name}.md) {r.label}",
                        r.formula,
                        r.reads,
                        r.level,
                        defaults_in_words(r),
                        r.source,
                    )
                    for r in rows
                ),
            ),
            "\n## Traps\n",
            *table(("name", "trap"), ((f"`{row.name}`", trap) for row in rows for trap in row.traps)),
            "\n## Variants\n",
            *table(
                ("name", "give it", "and it is"),
                (
                    (
                        f"`{row.name}`",
                        f'`{v.parameter}="{v.value}"`' + (" (default)" if v.default else ""),
                        v.meaning,
                    )
                    for row in rows
                    for v in row.variants
                ),
            ),
            "\n## As coded\n",
            AS_CODED + ", ".join(f"`{key}` {version}" for key, version in FRAMEWORKS.items()) + ".\n",
            *table(
                ("framework", "name", "hyperparameters"),
                (
                    (framework, f"`{row.name}`", in_words(row.frameworks[framework]) or "the defaults")
                    for framework in FRAMEWORKS
                    for row in rows
                    if framework in row.frameworks
                ),
            ),
            "",
            MISSING.rstrip(),
            "",
        ]
    )


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page())
