"""The numbers DeepSpeed is given, and what is refused of them."""

from typing import Any

import pytest

from arc_ray.config.model import ModelConfig
from arc_ray.config.training import GRADIENT_BUCKET, TrainConfig
from arc_ray.errors import UserError
from arc_ray.train.engine import accumulation_steps, check_deepspeed, deepspeed_config


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "steps"), [(16, 1, 1, 16), (16, 2, 4, 2), (16, 16, 1, 1), (12, 2, 3, 2)]
)
def test_accumulation_makes_up_the_global_batch(batch: int, micro: int, workers: int, steps: int):
    assert accumulation_steps(TrainConfig(batch_rows=batch, micro_rows=micro), workers) == steps
    assert steps * micro * workers == batch


@pytest.mark.parametrize(("workers", "steps"), [(3, 6), (5, 4), (32, 1)])
def test_workers_that_do_not_divide_the_batch_make_a_last_pass_that_is_short(workers: int, steps: int):
    """Would catch a global batch that silently becomes smaller on another cluster."""
    assert accumulation_steps(TrainConfig(batch_rows=16), workers) == steps
    assert (steps - 1) * workers < 16 <= steps * workers


def test_the_deepspeed_dict_written_out():
    """Every number is derived from the config; would catch a second place where one could be set."""
    train = TrainConfig(batch_rows=16, micro_rows=2, clip=0.5, zero_stage=1)
    assert deepspeed_config(train, ModelConfig(dtype="bfloat16"), num_workers=2) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": GRADIENT_BUCKET},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},
    }
    assert deepspeed_config(TrainConfig(clip=None), ModelConfig(), 1)["gradient_clipping"] == 0.0
    assert deepspeed_config(TrainConfig(), ModelConfig(dtype="float16"), 1)["fp16"] == {"enabled": True}


@pytest.mark.parametrize(("full", "own", "expected"), [(False, {}, 1), (True, {}, 2), (True, {"zero_stage": 0}, 0)])
def test_an_adapter_is_not_sharded_but_for_its_optimizer(full: bool, own: dict[str, Any], expected: int):
    """Would catch ZeRO 2 for an adapter: a hook and a reduction for each of its weights, every micro-batch."""
    zero = deepspeed_config(TrainConfig(full=full, **own), ModelConfig(), 1)["zero_optimization"]
    assert zero["stage"] == expected


@pytest.mark.parametrize(
    ("stage", "offloaded"),
    [(1, {"offload_optimizer"}), (2, {"offload_optimizer"}), (3, {"offload_optimizer", "offload_param"})],
)
def test_offloading_is_to_the_cpu(stage: int, offloaded: set[str]):
    for offload in (True, False):
        zero = deepspeed_config(TrainConfig(zero_stage=stage, offload=offload), ModelConfig(), 1)["zero_optimization"]  # pyright: ignore
        assert zero["stage"] == stage
        moved = zero.keys() - {"stage", "reduce_bucket_size"}
        assert moved == (offloaded if offload else set())
        assert all(zero[key] == {"device": "cpu"} for key in moved)


def test_the_free_dict_is_merged_last_and_deeply():
    """Would catch an override that drops its neighbours, or that changes the config it came from."""
    free = {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 1, "wall_clock_breakdown": True}
    train = TrainConfig(zero_stage=2, deepspeed=free)
    merged = deepspeed_config(train, ModelConfig(), 1)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": GRADIENT_BUCKET, "overlap_comm": True}
    assert merged["steps_per_print"] == 1
    assert merged["wall_clock_breakdown"] is True
    assert merged["train_micro_batch_size_per_gpu"] == 1
    assert train.deepspeed == {
        "zero_optimization": {"overlap_comm": True},
        "steps_per_print": 1,
        "wall_clock_breakdown": True,
    }


@pytest.mark.parametrize("key", ["train_batch_size", "gradient_accumulation_steps", "optimizer", "scheduler"])
def test_what_has_a_key_of_its_own_cannot_be_overruled(key: str):
    """Would catch a batch that is not the plan's, and a rate that is set in vain."""
    with pytest.raises(ValueError, match=rf"deepspeed sets {key}, .*: set train\.\w+"):
        TrainConfig(deepspeed={key: 1})


@pytest.mark.parametrize(
    ("own", "dtype", "message"),
    [
        (
            {"zero_optimisation": {"stage": 1}},
            "float32",
            "zero_optimisation: DeepSpeed knows no such key; did you mean zero",
        ),
        ({"gradient_clipping": "auto"}, "float32", "nothing fills in the value auto"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "float32", "nothing fills in the value auto"),
        ({"gradient_clipping": "1.0"}, "float32", "gradient_clipping is '1.0'; it must be a float"),
        ({"prescale_gradients": "yes"}, "float32", "prescale_gradients is 'yes'; it must be a bool"),
        ({"zero_optimization": {"overlap": True}}, "float32", "DeepSpeed refuses it: .*overlap"),
        ({"zero_optimization": {"overlap_comm": "perhaps"}}, "float32", "DeepSpeed refuses it: .*overlap_comm"),
        ({"communication_data_type": "fp99"}, "float32", "DeepSpeed refuses it: .*fp99"),
        ({"fp16": {"enabled": True}}, "float32", "fp16 is for model.dtype=float16; model.dtype is float32"),
        ({"bf16": {"enabled": False}}, "bfloat16", "bf16 is for model.dtype=bfloat16"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "bfloat16", "fp32 needs train.zero_stage 2 or 3"),
    ],
)
def test_what_deepspeed_would_refuse_late_or_ignore_is_refused_before_work(own: Any, dtype: Any, message: str):
    """Would catch a TypeError after the first step, and a setting that is set in vain."""
    with pytest.raises(UserError, match=f"train.deepspeed.*{message}"):
        check_deepspeed(TrainConfig(deepspeed=own), ModelConfig(dtype=dtype))


@pytest.mark.parametrize(
    ("own", "dtype"),
    [
        ({}, "float32"),
        (
            {"zero_optimization": {"overlap_comm": True}, "gradient_clipping": 1, "prescale_gradients": False},
            "bfloat16",
        ),
        (
            {"fp16": {"initial_scale_power": 8}, "communication_data_type": "fp32", "wall_clock_breakdown": True},
            "float16",
        ),
        ({"timers": {"throughput": {"enabled": False}}, "flops_profiler": {"enabled": True}, "aio": {}}, "float32"),
    ],
)
def test_what_deepspeed_knows_is_taken(own: Any, dtype: Any):
    """Would catch a check that refuses what has no key of ours."""
    check_deepspeed(TrainConfig(deepspeed=own), ModelConfig(dtype=dtype))
