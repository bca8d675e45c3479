"""How work is dealt out must not change what comes out: world 1 with accumulation 2 is world 2 with accumulation 1,
ZeRO's stages agree, and every rank ends with the same answer. Real gloo ranks, real DeepSpeed, NF4, noise and load
balance on.
"""

import statistics

import pytest
import rank_work
import torch
from ranks import on_ranks
from tiny_campaign import campaign, write_inputs

from bs_cluster.adapter_format import tensor_key

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SPACES = ("output", "input", "both")
ONE_ROUND = {"max_rounds": 1}
IN_PARTS = {"base": {"cache_dequantized": False}, "training": {"zero_stage": 3}}
ISOLATED = {"context": "isolated", "max_rounds": 2}
CLIPPED = {"max_grad_norm": 1e-3, "steps": 3, "per_device_batch": 2}
ROUNDING = 1e-5  # sums are taken in another order; measured 2e-8 or less


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def jobs(inputs, folder, world: int) -> dict:
    """The same campaigns at each world size, and what only two ranks are needed for."""

    def config(name: str, **changes):
        training = {"num_workers": world, **changes.pop("training", {})}
        return campaign(inputs, folder / name, ("aa", "bb"), training=training, **changes)

    found = {
        "output": (rank_work.whole_campaign, (config("output"),)),
        "input": (rank_work.whole_campaign, (config("input", null_space={"space": "input"}, training=ONE_ROUND),)),
        "noiseless": (rank_work.first_round, (config("noiseless", training={"noise": False}),)),
    }
    if world == 2:
        both, sampled = {"space": "both"}, {"method": "randomized", "samples": 40}
        found |= {
            "both": (rank_work.whole_campaign, (config("both", null_space=both, training=ONE_ROUND),)),
            "randomized": (rank_work.whole_campaign, (config("randomized", null_space=sampled, training=ONE_ROUND),)),
        }
        for stage in (0, 1, 2):
            zero = config(f"zero{stage}", training={"zero_stage": stage})
            found[f"zero{stage}"] = (rank_work.first_round, (zero,))
            clipped = config(f"clipped{stage}", training={"zero_stage": stage, **CLIPPED})
            found[f"clipped{stage}"] = (rank_work.gradient_norms, (clipped,))
        for stage in (2, 3):
            few = {"training": {"zero_stage": stage}, "stack": {"target_modules": ["q_proj", "v_proj"]}}
            found[f"few{stage}"] = (rank_work.first_round, (config(f"few{stage}", **IN_PARTS | few),))
        for name, domains in (("apart", ("aa", "bb")), ("bb alone", ("bb",))):
            isolated = {"training": ISOLATED | {"num_workers": world}, "null_space": {"enabled": False}}
            found[name] = (rank_work.whole_campaign, (campaign(inputs, folder / name, domains, **isolated),))
        found["in parts"] = (rank_work.whole_campaign, (config("in parts", **IN_PARTS),))
        for stage in (2, 3):
            held = config(f"held{stage}", **IN_PARTS | {"training": {"zero_stage": stage}})
            found[f"held{stage}"] = (rank_work.held_of_the_base, (held,))
        for size in (1, 2, 4):
            micro = config(f"micro{size}", base={"compute_dtype": "float32"}, training={"per_device_batch": size})
            found[f"micro{size}"] = (rank_work.first_round, (micro,))
        found["recomputed"] = (
            rank_work.first_round,
            (config("recomputed", training={"gradient_checkpointing": True}),),
        )
    return found


@pytest.fixture(scope="module")
def two(inputs, tmp_path_factory):
    """What each of two ranks found."""
    return on_ranks(2, rank_work.several, jobs(inputs, tmp_path_factory.mktemp("two"), 2))


@pytest.fixture(scope="module")
def one(inputs, tmp_path_factory):
    return on_ranks(1, rank_work.several, jobs(inputs, tmp_path_factory.mktemp("one"), 1))[0]


@pytest.fixture(scope="module")
def three(inputs, tmp_path_factory):
    """Of a step's four micro-batches two ranks take one and the third two; of two micro-batches it takes none."""
    folder = tmp_path_factory.mktemp("three")
    work = {}
    for size in (2, 4):
        training = {"per_device_batch": size, "min_workers": 1}
        config = campaign(
            inputs, folder / f"{size}", ("aa", "bb"), base={"compute_dtype": "float32"}, training=training
        )
        work[f"micro{size}"] = (rank_work.first_round, (config,))
    base = IN_PARTS["base"]
    for stage in (2, 3):
        training = {"num_workers": 3, "global_batch": 12, "zero_stage": stage}
        config = campaign(inputs, folder / f"zero{stage}", ("aa", "bb"), training=training, base=base)
        work[f"zero{stage}"] = (rank_work.first_round, (config,))
    return on_ranks(3, rank_work.several, work)


def assert_same_curve(a: rank_work.Round, b: rank_work.Round):
    assert [line["step"] for line in a.history] == [line["step"] for line in b.history]
    for mine, theirs in zip(a.history, b.history, strict=True):
        for key in {"loss", "selection_loss", "load_balance"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], rel=ROUNDING), (mine["step"], key)


def assert_same_round(a: rank_work.Round, b: rank_work.Round):
    assert_same_curve(a, b)
    assert a.stack.keys() == b.stack.keys()
    for key, tensor in a.stack.items():
        torch.testing.assert_close(tensor, b.stack[key], rtol=ROUNDING, atol=ROUNDING, msg=key)


def assert_nearly_same_round(a: rank_work.Round, b: rank_work.Round):
    assert_same_curve(a, b)
    for key, tensor in b.stack.items():  # Adam makes a whole step of a gradient that is nothing but rounding
        assert torch.linalg.norm(a.stack[key] - tensor) <= 0.01 * torch.linalg.norm(tensor), key


def assert_same_start(a: rank_work.Round, b: rank_work.Round):
    """For rounds whose gradients differ by rounding: equal at first, until bf16 and the choice of experts make more
    of it, and as good in the end."""
    for mine, theirs in zip(a.history[1:3], b.history[1:3], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=ROUNDING)
    assert a.outcome.val_before == b.outcome.val_before
    assert a.outcome.val_after == pytest.approx(b.outcome.val_after, abs=0.02)


class TestWorldSize:
    def test_one_worker_accumulating_takes_the_steps_of_two(self, one, two):
        assert_same_round(one["output"]["rounds"]["aa_r1"], two[0]["output"]["rounds"]["aa_r1"])

    def test_so_does_a_second_round_in_the_same_process(self, one, two):
        assert_same_round(one["output"]["rounds"]["aa_r2"], two[0]["output"]["rounds"]["aa_r2"])

    def test_so_does_a_later_domain_in_its_null_space(self, one, two):
        assert_same_start(one["output"]["rounds"]["bb_r1"], two[0]["output"]["rounds"]["bb_r1"])

    def test_so_does_a_round_without_noise(self, one, two):
        """The noise's weights then stay where they began. Without noise between logits, rounding alone may choose
        another expert where two are equal in bf16: the losses are equal for four steps, not to the end."""
        assert_same_start(one["noiseless"], two[0]["noiseless"])
        noise = [tensor for key, tensor in one["noiseless"].stack.items() if "stack_noise" in key]
        assert len(noise) == 14
        assert not any(tensor.any() for tensor in noise)

    def test_the_base_scores_to_the_same_bits(self, one, two):
        assert one["output"]["base_losses"] == two[0]["output"]["base_losses"]
        assert set(one["output"]["base_losses"]) == {"aa", "bb"}

    def test_all_ranks_end_with_the_same_answer(self, two):
        for name in ("output", "input", "both", "randomized"):
            first, second = two[0][name], two[1][name]
            without_time = [{**r.outcome.to_dict(), "seconds": 0} for r in first["rounds"].values()]
            assert without_time == [{**r.outcome.to_dict(), "seconds": 0} for r in second["rounds"].values()]
            for domain, claim in first["claims"].items():
                assert claim.to_bytes() == second["claims"][domain].to_bytes()

    def test_rounds_improved_and_the_stores_are_sound(self, one, two):
        for found in (one["output"], one["input"], *(two[0][name] for name in (*SPACES, "randomized"))):
            assert found["verify"] == []
            assert all(r.outcome.committed and r.outcome.restores == 0 for r in found["rounds"].values())


@pytest.mark.parametrize("size", [1, 2])
def test_the_size_of_a_micro_batch_changes_nothing_though_gates_are_noisy(two, size):
    """Of a step's eight rows each of two ranks takes one, two or, undivided, four at a time. In fp32: in bf16 the size
    of a product alone rounds otherwise."""
    assert_nearly_same_round(two[0][f"micro{size}"], two[0]["micro4"])
    assert any(tensor.any() for key, tensor in two[0]["micro4"].stack.items() if "stack_noise" in key)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_have_less_to_do_change_nothing(two, three, size):
    for rank in range(3):
        assert_nearly_same_round(three[rank][f"micro{size}"], two[0]["micro4"])


def test_recomputing_activations_changes_nothing(two):
    assert_same_round(two[0]["recomputed"], two[0]["zero2"])


class TestZeroStages:
    def test_one_and_two_agree(self, two):
        assert_same_round(two[0]["zero1"], two[0]["zero2"])

    def test_none_agrees_but_for_how_the_norm_is_rounded_in_clipping(self, two):
        assert_same_start(two[0]["zero0"], two[0]["zero2"])

    def test_a_base_in_parts_makes_the_very_stacks_and_records_of_a_whole_one(self, two):
        """Two domains with their closings, whose probes are the first rank's alone."""
        parts, whole = two[0]["in parts"], two[0]["output"]
        assert parts["weights"] == whole["weights"]
        assert parts["base_losses"] == whole["base_losses"]
        for name, round_ in whole["rounds"].items():
            assert parts["rounds"][name].history == round_.history, name
        for domain, record in whole["records"].items():
            assert parts["records"][domain].row_losses == record.row_losses
            assert parts["records"][domain].probe.rows == record.probe.rows
            assert parts["records"][domain].matrix == record.matrix

    def test_projections_without_a_stack_learn_through_their_own_weights(self, two):
        """Their backward is torch's, which knows nothing of parts."""
        parts, whole = two[0]["few3"], two[0]["few2"]
        assert parts.history == whole.history
        assert all(torch.equal(tensor, parts.stack[key]) for key, tensor in whole.stack.items())

    def test_so_do_three_ranks_of_which_one_has_less_to_score(self, three):
        parts, whole = three[2]["zero3"], three[0]["zero2"]
        assert parts.history == whole.history
        assert parts.stack.keys() == whole.stack.keys()
        assert all(torch.equal(tensor, parts.stack[key]) for key, tensor in whole.stack.items())

    def test_a_rank_holds_its_part_of_the_base(self, two):
        whole, part = two[0]["held2"], two[1]["held3"]
        assert part["parts"] == pytest.approx(whole["projections"] / 2, rel=0.02)
        assert part["projections"] <= whole["projections"] / 2  # of two layers, at most one is there
        assert part["rest"] == whole["rest"]

    @pytest.mark.parametrize("stage", [0, 1, 2])
    def test_the_gradient_norm_told_is_that_of_before_clipping(self, two, stage):
        """What autograd alone gives for the global batch, though each step is clipped to a hundredth of it or less."""
        norms = two[0][f"clipped{stage}"]
        assert len(norms) == 3
        for told, by_hand in norms:
            assert told == pytest.approx(by_hand, rel=1e-4)
            assert told > 100 * CLIPPED["max_grad_norm"]


def test_without_a_null_space_an_isolated_domain_is_what_it_is_alone(two):
    """To the bit, though another's stacks came before, waited in the host's memory and were back for the closing."""
    apart, alone = two[0]["apart"], two[0]["bb alone"]
    own = {name: digest for name, digest in apart["weights"].items() if name.startswith("bb")}
    assert own == alone["weights"]
    assert apart["records"]["bb"].row_losses == alone["records"]["bb"].row_losses
    others = {name for name in apart["weights"] if name.startswith("aa")}
    assert others
    assert all(apart["parked"][name] == others for name in own)


def smallest_cosine(a_OK: torch.Tensor, b_OK: torch.Tensor) -> float:
    """Of the principal angles between two subspaces; 1 when one holds the other."""
    return float(torch.linalg.svdvals(a_OK.double().t() @ b_OK.double()).min())


class TestClaims:
    @pytest.mark.parametrize("space", ["output", "input"])
    def test_are_the_same_directions_at_either_world_size(self, one, two, space):
        others = getattr(one[space]["claims"]["aa"], space)
        for site, basis in getattr(two[0][space]["claims"]["aa"], space).items():
            other = others[site]
            assert basis.shape == other.shape, site
            assert smallest_cosine(basis, other) > 1 - 1e-4, site

    @pytest.mark.parametrize("space", ["output", "input"])
    def test_hold_as_much_at_either_world_size(self, one, two, space):
        ours, others = (found[space]["records"]["aa"].energy_held[space] for found in (one, two[0]))
        assert ours.mean == pytest.approx(others.mean, rel=1e-3)
        assert ours.worst == pytest.approx(others.worst, rel=1e-3)

    @pytest.mark.parametrize("name", [*SPACES, "randomized"])
    def test_energies_are_the_same_on_all_ranks(self, two, name):
        for domain, record in two[0][name]["records"].items():
            for what in ("energy_held", "overlap", "overlap_claimed", "foreign", "abroad", "span"):
                assert getattr(record, what) == getattr(two[1][name]["records"][domain], what), (domain, what)
            assert set(record.foreign) == set(record.abroad) == ({"aa"} if domain == "bb" else set())

    @pytest.mark.parametrize("name", [*SPACES, "randomized"])
    def test_are_orthogonal_to_those_of_earlier_domains(self, two, name):
        claims = two[0][name]["claims"]
        assert claims["aa"].overlap(claims["bb"]) < 1e-10

    @pytest.mark.parametrize("name", [*SPACES, "randomized"])
    def test_are_orthonormal_and_on_every_site(self, two, name):
        sides = {"output": ["output"], "input": ["input"], "both": ["output", "input"], "randomized": ["output"]}[name]
        for claim in two[0][name]["claims"].values():
            entries = list(claim.entries())
            assert {side for side, _, _ in entries} == set(sides)
            assert len(entries) == 14 * len(sides)  # seven projections, two layers
            for _, site, basis in entries:
                assert 1 <= basis.shape[1] <= 4, site
                torch.testing.assert_close(basis.t() @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", [*SPACES, "randomized"])
    def test_stored_stacks_of_later_domains_keep_out_of_them(self, two, name):
        found = two[0][name]
        later = [r for stack, r in found["rounds"].items() if stack.startswith("bb")]
        assert later
        for round_ in later:
            for side, site, basis in found["claims"]["aa"].entries():
                part = "stack_B" if side == "output" else "stack_A"
                tensor_ERX = round_.stack[tensor_key(site, part)]
                written = torch.linalg.norm(tensor_ERX.double() @ basis.double())
                assert written <= 1e-5 * torch.linalg.norm(tensor_ERX.double()), (side, site)
                assert torch.linalg.norm(tensor_ERX) > 0

    @pytest.mark.parametrize("name", SPACES)
    def test_a_confined_stack_scores_as_stored_what_it_scored_in_training(self, two, name):
        """The base is bf16: were the constraint rounded otherwise at freeze, its loss would move."""
        for stack, round_ in two[0][name]["rounds"].items():
            measured = [line["selection_loss"] for line in round_.history if "selection_loss" in line]
            assert round_.selection_loss == pytest.approx(min(measured), abs=1e-6), stack

    def test_a_manifest_says_how_much_room_its_stack_had(self, two):
        found = two[0]["output"]
        free = [1 - basis.shape[1] / basis.shape[0] for basis in found["claims"]["aa"].output.values()]
        first, later = (found["metrics"][name] for name in ("aa_r1", "bb_r1"))
        assert (first["free_share_min"], first["free_share_median"]) == (1.0, 1.0)
        assert later["free_share_min"] == pytest.approx(min(free))
        assert later["free_share_median"] == pytest.approx(statistics.median(free))

    def test_the_free_side_is_left_free(self, two):
        """A claim on outputs says nothing about inputs."""
        found = two[0]["output"]
        site = next(iter(found["claims"]["aa"].output))
        a_MI = found["rounds"]["bb_r1"].stack[tensor_key(site, "stack_A")].flatten(0, 1)
        assert torch.linalg.matrix_rank(a_MI) == min(a_MI.shape)
