"""Causes that are no drift at all: the two sides do not speak of the same numbers."""

from __future__ import annotations

from mismatch_probe.causes.catalogue.cause import Cause

DATA = (
    Cause(
        "sentinel-values", "MP620", "data", "sentinels instead of log-probabilities",
        "NaN, infinities or placeholders such as -9999; every mean they enter is lost, or worse, is not.",
        "The check for finite values (MP102) counts them by side.",
        "Find the side that writes them by sequence id; score that sequence alone.",
        "No published rate; one NaN is enough to make the loss of its batch NaN.",
        ("trl#6166", "trl#6693", "NeMo-RL#2962"),
        (("vLLM", "look for requests that ended early, and for NaN logits with FP8 scales"),
         ("TRL, NeMo-RL", "mask tokens whose rollout log-probability is not finite before the loss"),
         ("verl", "check the padding value of rollout_log_probs before the response mask is applied")),
    ),
    Cause(
        "padding-in-mask", "MP621", "data", "padding inside the response mask",
        "Sequences end (or begin) in one number repeated bit for bit on one side.",
        "The check for padding (MP102). Fewer than three padded tokens look like a misplaced mask (MP101).",
        "Recompute the mask from the response lengths and measure again.",
        "No published size: the effect is as large as the padding is long.",
        ("the padding rule of each trainer's own batch code",),
        (("any trainer", "build the loss mask from the token ids that the engine returned, the end token included"),
         ("slime, verl", "check that loss_mask and response_length describe the same tokens")),
    ),
    Cause(
        "token-shift", "MP622", "data", "log-probabilities one token off",
        "One side's row fits the other far better when moved by a token; mean |log ratio| is of the order of the "
        "entropy.",
        "The check for shifts (MP105), whole run and sequence by sequence.",
        "Move one side by the shift that the check names; the drift has to fall to the floor.",
        "No published size; ms-swift shipped one together with raw log-probabilities.",
        ("ms-swift#8196",),
        (("any trainer", "logits at position i predict token i + 1: cut the last logit, not the first"),
         ("ms-swift", "upgrade past the fix of issue 8196")),
    ),
    Cause(
        "swapped-rows", "MP623", "data", "rows swapped or duplicated",
        "A few sequences have a huge drift that vanishes against another row of the batch.",
        "The check of rows (MP110); it compares rows of equal length, so a swap of different lengths is a shape error.",
        "Join both sides by sequence id instead of by place.",
        "No published size.",
        ("a gather that does not keep the order of its scatter",),
        (("verl, slime, OpenRLHF", "check the order after balancing batches by length across ranks"),
         ("any trainer", "carry a sequence id through the batch and compare it at the loss")),
    ),
    Cause(
        "broken-sequence", "MP624", "data", "one sequence is broken",
        "Nearly all of the drift sits in one sequence of one prompt; the rest of the run is at the floor.",
        "The share of K3 in the worst sequence, and its distance from the other sequences in robust standard deviations.",
        "Score that sequence again on both sides, alone.",
        "No published size: a preempted or retried request, or a truncated prompt, spoils its own sequence only.",
        ("request preemption and retry in the serving engine",),
        (("vLLM, SGLang", "look at preemption, abort and retry of that request in the engine's log"),
         ("any trainer", "drop the sequence, or reject sequences by their mean |log ratio|")),
    ),
    Cause(
        "retokenised-text", "MP625", "data", "text was tokenized again",
        "Some sequences are as far apart as unrelated tokens from one place on, others agree.",
        "The check of token identity (MP101), and the ids of both sides where both are recorded.",
        "Hand token ids, never text, from the rollout to the trainer.",
        "No published rate was found; one changed token changes all that follow.",
        ("verl#3720", "verl#3960", "verl#6719"),
        (("vLLM server", "ask for return_token_ids and train on those"),
         ("verl", "use the agent loop's token-in, token-out path; never apply the chat template to a decoded answer"),
         ("TRL", "pass prompt ids and completion ids of the rollout function through unchanged")),
    ),
    Cause(
        "bos-dropped", "MP626", "data", "the first token is missing on one side",
        "Drift is largest on the first response tokens and the two sides' prompts differ by the BOS token.",
        "The prompt ids of both sides, where both are recorded. From log-probabilities alone it cannot be told from "
        "other "
        "changes of the context.",
        "Score again with the engine's own prompt ids.",
        "No published size; models trained with BOS use it as an attention sink, so the whole sequence moves.",
        ("add_special_tokens differs between a chat template and a plain encode",),
        (("any trainer", "use the prompt_token_ids that the engine returns"),
         ("vLLM server", "set add_special_tokens alike on the completions and the chat route")),
    ),
)  # fmt: skip
