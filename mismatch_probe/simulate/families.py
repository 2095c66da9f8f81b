"""The corrections by what they do, for tables and pictures."""

from __future__ import annotations

OTHER = "other"

FAMILIES: dict[str, tuple[str, ...]] = {
    "VESPO": ("vespo", "vespo_sqrt", "vespo_lin"),
    "none and plain importance weights": ("reinforce", "token_is", "prefix_is", "seq_is"),
    "truncated": ("token_tis", "seq_tis", "cispo", "topr", "minirl"),
    "masked": ("icepop", "kpop", "seq_mis", "geo_rs", "k3_rs", "opsm", "m2po"),
    "clipped": ("ppo_clip", "dapo", "dual_clip", "two_sided"),
    "clipped geometric mean": ("gspo", "gspo_token", "luspo", "gmpo"),
    "smooth gate": ("sapo",),
    "trust region": ("dppo_tv", "dppo_kl", "prime_dppo", "ipo", "drpo"),
}

_FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}


def family_of(name: str) -> str:
    """The family of a method; "other" for one that a third party registered."""
    return _FAMILY_OF.get(name, OTHER)
