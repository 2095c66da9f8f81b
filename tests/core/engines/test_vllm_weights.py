"""State of a model, bit by bit, packed weights included; the running engine is under test in tests/e2e."""

import torch

from mismatch_probe.engines.refit import StateDigest, compare_digests
from mismatch_probe.engines.vllm_weights import compare_states, digest, read_state


class PackedMethod:
    """Applies a weight that is kept where parameters do not show it, as kernels on the CPU do."""

    def apply(self, layer, rows, bias):
        return rows @ layer.handle.T


class PackedLinear(torch.nn.Module):
    """A linear layer with an empty weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.handle = weight.clone()
        self.params_dtype = torch.float32
        self.input_size = weight.shape[1]
        self.quant_method = PackedMethod()


class Model(torch.nn.Module):
    """A packed and a plain layer, a buffer, and an empty tensor that nobody can be asked about."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.packed = PackedLinear(torch.randn(3, 5))
        self.plain = torch.nn.Linear(4, 2)
        self.register_buffer("table", torch.arange(6.0))
        self.lost = torch.nn.Module()
        self.lost.weight = torch.nn.Parameter(torch.empty(0))


def test_an_untouched_model_is_equal_and_says_what_it_could_not_read():
    tensors, unread = read_state(Model())
    assert compare_states(tensors, read_state(Model())[0]) == []
    assert unread == ["lost.weight"]
    assert "packed.output" in tensors


def test_a_packed_weight_that_changed_is_named():
    changed = Model()
    changed.packed.handle[0, 0] += 1e-3
    rows = compare_states(read_state(Model())[0], read_state(changed)[0])
    assert [row["name"] for row in rows] == ["packed.output"]
    assert rows[0]["module"] == "packed"
    assert rows[0]["max_abs"] > 0


def test_a_stale_packed_copy_beside_an_updated_weight_is_named():
    """What vLLM on CPU does to a tied LM head: its weight follows the embedding, the copy that multiplies does not."""

    def head():
        model = torch.nn.Module()
        model.lm_head = PackedLinear(torch.ones(3, 5))
        model.lm_head.weight = torch.nn.Parameter(torch.ones(3, 5), requires_grad=False)
        model.lm_head.cpu_linear = model.lm_head.quant_method.apply
        return model

    stale = head()
    stale.lm_head.handle[0, 0] = 2.0
    rows = compare_states(read_state(head())[0], read_state(stale)[0])
    assert [row["name"] for row in rows] == ["lm_head.output"]


def test_one_bit_of_a_plain_weight_is_found():
    changed = Model()
    with torch.no_grad():
        changed.plain.weight[1, 2] = torch.nextafter(changed.plain.weight[1, 2], torch.tensor(9.0))
    (row,) = compare_states(read_state(Model())[0], read_state(changed)[0])
    assert row["name"] == "plain.weight"
    assert row["differing_fraction"] == 1 / 8


def test_a_copy_does_not_follow_the_model():
    model = Model()
    held, _ = read_state(model)
    with torch.no_grad():
        model.table.zero_()
    assert [row["name"] for row in compare_states(held, read_state(model)[0])] == ["table"]


def test_missing_unexpected_and_reshaped_state_is_named_and_nan_equals_itself():
    nan = torch.tensor([float("nan"), 1.0])
    held = {"a.x": nan, "a.gone": torch.ones(1), "a.shape": torch.ones(2, 3)}
    found = {"a.x": nan.clone(), "a.new": torch.ones(1), "a.shape": torch.ones(3, 2)}
    assert {row["name"]: row["what"] for row in compare_states(held, found)} == {
        "a.gone": "missing",
        "a.new": "unexpected",
        "a.shape": "shape differs",
    }


def digests(model):
    tensors, unread = read_state(model)
    return StateDigest({name: digest(tensor) for name, tensor in tensors.items()}, tuple(unread))


def test_digests_name_what_the_tensors_themselves_name():
    changed = Model()
    changed.packed.handle[0, 0] += 1e-3
    with torch.no_grad():
        changed.plain.weight[1, 2] = torch.nextafter(changed.plain.weight[1, 2], torch.tensor(9.0))
    found = compare_digests(digests(Model()), digests(changed))
    rows = compare_states(read_state(Model())[0], read_state(changed)[0])
    assert [item.name for item in found.differences] == [row["name"] for row in rows]
    assert {item.what for item in found.differences} == {"differs"}
    assert found.unread == ("lost.weight",)
    assert compare_digests(digests(Model()), digests(Model())).differences == ()


def test_digests_tell_shapes_and_missing_pieces_apart():
    held = StateDigest({"a.w": ((2, 2), "x"), "b.w": ((2,), "y"), "c.w": ((3,), "z")}, ())
    found = StateDigest({"a.w": ((4,), "x"), "c.w": ((3,), "z"), "d.w": ((1,), "z")}, ())
    rows = {item.name: (item.what, item.module) for item in compare_digests(held, found).differences}
    assert rows == {"a.w": ("shape differs", "a"), "b.w": ("missing", "b"), "d.w": ("unexpected", "d")}


def test_equal_numbers_of_another_dtype_have_another_digest():
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    assert digest(tensor) != digest(tensor.to(torch.float16))
    assert digest(tensor) == digest(tensor.clone())
