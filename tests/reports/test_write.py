"""Writing: the files that are promised, whole, and nothing else."""

from pathlib import Path

import pytest
from reports.sample import dense, drifting

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe_reports import write_report


def test_files_are_where_the_contract_says(tmp_path: Path) -> None:
    files = write_report(dense(), tmp_path)
    assert files.html == tmp_path / "report.html"
    assert [path.relative_to(tmp_path).as_posix() for path in files.figures] == [
        "figures/waterfall.png", "figures/token_probability.png", "figures/ecdf.png",
        "figures/log_weight_length.png", "figures/weights.png", "figures/weight_curves_sequence.png",
        "figures/weight_curves_token.png", "figures/weight_sweep.png", "figures/weight_extrapolation.png",
        "figures/overview.png",
    ]  # fmt: skip
    dense_model = "left out: tiny-dense is a dense model: it has no experts"
    assert {f"figure {name} {dense_model}" for name in ("routing", "routing_flips")} <= set(
        map(str, files.skipped)
    )
    present = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert present == {"report.html", *(f"figures/{path.name}" for path in files.figures)}


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_report(drifting(), tmp_path)
    assert (tmp_path / "figures/routing.png").is_file()
    write_report(dense(), tmp_path)
    assert not (tmp_path / "figures/routing.png").exists()


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunDirectoryError, match="No space left") as caught:
        write_report(dense(), tmp_path)
    assert "make room" in (caught.value.hint or "")
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_would_be_too_large_shows_fewer_sequences_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = {"position": 0, "text": "a" * 40, "id": 1, "rollout_p": 0.5, "train_p": 0.4, "log_ratio": -0.2,
             "entropy": 1.0, "flipped_layers": None}  # fmt: skip
    sequence = {"sequence": 1, "why": "random", "length": 96, "begin": 0, "log_weight": 0.1, "max_abs_log_ratio": 0.2,
                "tokens": [token] * 96}  # fmt: skip
    explorer = {
        "available": True,
        "redact": "none",
        "text": True,
        "flips_reason": "",
        "sequences": [sequence] * 9,
    }
    whole = write_report(dense(), tmp_path, explorer).html.read_bytes()
    assert whole.count(b"<details data-weight") == 9 and b"left out: the page" not in whole
    monkeypatch.setattr("mismatch_probe_reports.write.PAGE_LIMIT", len(whole) - 1)
    smaller = write_report(dense(), tmp_path, explorer).html.read_bytes()
    assert len(smaller) < len(whole)
    assert smaller.count(b"<details data-weight") == 4 and b"5 sequences left out" in smaller
    monkeypatch.setattr("mismatch_probe_reports.write.PAGE_LIMIT", 1)
    assert b"9 sequences left out" in write_report(dense(), tmp_path, explorer).html.read_bytes()
