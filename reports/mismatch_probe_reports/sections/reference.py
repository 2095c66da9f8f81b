"""Reference bands that others published, and the words of the report.

The bands are other people's numbers on other models; they are shown so that a reader can place a run, not as bars.
"""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, look_up, read_mapping, read_number
from mismatch_probe_reports.tables import Cell, Column, Section, Table

GITHUB = "https://github.com/"
ARXIV = "https://arxiv.org/abs/"

# setting, estimator and number, source, address ("" where only the name is sure)
BANDS: tuple[tuple[str, str, str, str], ...] = (
    (
        "Equal precision on both sides: pass bar of NeMo-RL",
        "mean exp |l| below 1.05 (1.0 is exact)",
        "NeMo-RL, docs/adding-new-models.md",
        f"{GITHUB}NVIDIA-NeMo/RL",
    ),
    (
        "Healthy against broken sequences (a state bug in chunked prefill)",
        "mean exp |l| about 1.007 against over 300; 15 to 20 % of sequences, the same ones each time",
        "NeMo-RL issue 2100",
        f"{GITHUB}NVIDIA-NeMo/RL/issues/2100",
    ),
    (
        "Qwen-class dense model, bf16 rollout",
        "mean |l| 0.0105, KL 1.2e-4",
        "miles issue 1678",
        f"{GITHUB}radixark/miles/issues/1678",
    ),
    (
        "The same with an fp8 rollout",
        "mean |l| 0.271, KL 0.060, flat over steps",
        "miles issue 1678",
        f"{GITHUB}radixark/miles/issues/1678",
    ),
    (
        "Qwen3-4B over 30 training steps",
        "mean |l| flat at 0.011 (vLLM); 0.011 rising to 0.036 (SGLang)",
        "vime issue 64",
        f"{GITHUB}vllm-project/vime/issues/64",
    ),
    (
        "Qwen3-8B, search task, batch-invariant kernels off / on",
        "KL at most 0.0084, |l| at most 1.56 / both 0",
        "torchtitan, rl/docs/bitwise_parity.md",
        f"{GITHUB}pytorch/torchtitan",
    ),
    (
        "Qwen3.5 with fp8, 35B / 9B",
        "KL 0.0024 / 0.0014 to 0.0018; well above means a broken weight update rather than fp8 noise",
        "NeMo-RL issue 2744",
        f"{GITHUB}NVIDIA-NeMo/RL/issues/2744",
    ),
    (
        "The same weights, two tensor-parallel ranks against one, bf16",
        "KL about 1.86e-3; reloaded without a change: 0",
        "NeMo Automodel issue 1839",
        f"{GITHUB}NVIDIA-NeMo/Automodel/issues/1839",
    ),
    (
        "An fp8 MoE layout bug",
        "KL 0.0466 (25 times the bf16 run) while the mean probability difference was 1.9e-6",
        "verl issue 7986",
        f"{GITHUB}verl-project/verl/issues/7986",
    ),
    (
        "Image and video policies (diffusion)",
        "mean |l| 2.2e-5 to 4.7e-4; clip ranges of 1e-5 in use lie below that noise",
        "verl-omni issues 280 and 291",
        "",
    ),
    (
        "Logits of a compiled model against its reference",
        "largest KL over prompts 1e-3, cosine distance 1e-3",
        "Modular MAX, accuracy tests",
        f"{GITHUB}modular/modular",
    ),
    (
        "Qwen3-30B-A3B, rollout engine against trainer",
        "K3 1.535e-3; 7.5e-4 with the rollout's routing forced; dense 8B 6.4e-4",
        "Rollout routing replay, arXiv 2510.11370",
        f"{ARXIV}2510.11370",
    ),
    (
        "Tail index of importance weights",
        "usable while k-hat < min(1 - 1 / log10 n, 0.7)",
        "Pareto smoothed importance sampling, arXiv 1507.02646",
        f"{ARXIV}1507.02646",
    ),
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "mu, pi",
        "The policy that sampled (rollout engine) and the policy that is differentiated (training side).",
    ),
    ("log-ratio l", "log pi - log mu of one sampled token: training minus rollout, in nats."),
    ("log W", "Sum of the log-ratios over a response; W is its importance weight."),
    ("K1, K2, K3", "Estimates of KL(mu || pi) per token: -l, l squared / 2, exp(l) - 1 - l."),
    (
        "leg",
        "One reading of the log-probabilities of the same token ids; a step is the difference of two legs.",
    ),
    ("noise floor", "How far a side is from itself when only batching changes; drift is judged against it."),
    ("exact", "The same number to the last bit on every token, not merely small."),
    ("would pass at", "The bar at which a finding would pass: the number to argue about."),
    ("ESS", "Effective sample size: how many equally weighted samples the weighted ones are worth."),
    ("k-hat", "Tail index of the weights; above its threshold, ESS and means of W are not to be relied on."),
    (
        "kappa, horizon",
        "Nats of log W lost per token, and the length at which sequence weights keep 10 % ESS.",
    ),
    (
        "Gaussian ratio",
        "Variance of log W over -2 times its mean: 1 for noise, more for heavy tails, less for a shift.",
    ),
    ("phi", "The coefficient a method puts on A grad log pi; 1 is no correction, 0 drops the token."),
    ("replay (R3)", "The training forward with the experts that the rollout engine chose."),
    ("staleness", "Drift from weights that moved since sampling, as opposed to mismatch of the engines."),
    ("interval", "95 %, from resampling prompts, since tokens of one prompt are not independent."),
)


def build_reference(result: Json) -> Section:
    """Return this run's numbers first, then the published bands with their sources."""
    columns = (
        Column("Setting", numeric=False),
        Column("Published", numeric=False),
        Column("Source", numeric=False),
    )
    rows = tuple(
        (Cell(setting), Cell(value), Cell(source, link=address)) for setting, value, source, address in BANDS
    )
    note = (
        "Published by others on other models and not checked here. Sources differ in estimator, temperature and "
        "length; compare like with like. A low average does not make a run safe: collapses were reported after "
        "hundreds of steps with a flat K3."
    )
    table = Table("bands", "Numbers that others report", columns, rows, note=note)
    tables = (table, _bars(result)) if read_mapping(result.get("bars")) else (table,)
    return Section("reference", "Reference bands", lead=_placed(result), tables=tables)


def _bars(result: Json) -> Table:
    """Return the bars that the verdict was reached with."""
    bars = read_mapping(result.get("bars"))
    rows = tuple(
        (Cell(fmt.clean(name).replace("_", " ")), Cell(fmt.scalar(value))) for name, value in bars.items()
    )
    columns = (Column("Bar", numeric=False), Column("Value"))
    return Table("bars", "Bars of this verdict", columns, rows, collapsed=True)


def _placed(result: Json) -> str:
    absolute = read_number(look_up(result, "token", "mean_abs_log_ratio")).value
    k3 = read_number(look_up(result, "token", "k3")).value
    if absolute is None or k3 is None:
        return "This run has no token drift to set beside them."
    return f"This run: mean |l| {fmt.number(absolute)} nats, K3 {fmt.number(k3)} nats per token."


def build_glossary() -> Section:
    """Return the words of the report."""
    columns = (Column("Word", numeric=False), Column("Meaning", numeric=False))
    rows = tuple((Cell(word), Cell(meaning)) for word, meaning in GLOSSARY)
    return Section(
        "glossary", "Glossary", tables=(Table("words", "Words used in this report", columns, rows),)
    )
