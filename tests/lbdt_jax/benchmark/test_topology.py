"""Programs compiled for TPUs without a TPU (lbdt_jax/benchmark/topology.py)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from input_pipeline.errors import UserError
from lbdt_jax.benchmark.report import compare, describe, load, plot, table_line
from lbdt_jax.benchmark.topology import details, make_topology, module_of, read_program, shape_bytes

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  ROOT %add.9 = f32[8]{0} add(%p, %p), metadata={op_name="jit(step)/jvp(LBDT)/head/add"}
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%x), calls=%fused, metadata={op_name="jit(step)/jvp(LBDT)/LBDT.segment/text_encoder/while/body/dot_general"}, backend_config={"estimated_cycles":"10"}
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%i, %fusion.1)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]{0}) while(%tuple.0), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"25"}}
  %fusion.2 = bf16[4,8]{1,0:T(8,128)} fusion(%a), calls=%fused, metadata={op_name="jit(step)/transpose(jvp(LBDT))/LBDT.encode/spatial_stream.stem_to_res4/res2/blocks_0/conv1/norm/reduce_sum"}, backend_config={"estimated_cycles":"300"}
  %all-reduce.1 = (f32[8]{0}, pred[3]{0}) all-reduce(%a, %b), to_apply=%fused
  %all-gather-start.2 = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%a), dimensions={0}
  %all-gather-done.2 = bf16[4,8]{1,0} all-gather-done(%all-gather-start.2)
  ROOT %copy.3 = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_cycles_and_collectives_of_a_program() -> None:
    cycles, collectives = read_program(PROGRAM)
    assert dict(cycles) == {
        ("text_encoder", False): 250,  # a loop of 25 words
        ("spatial_stream/res2/blocks_0", True): 300,
        ("(copies and layouts)", False): 7,
    }
    assert collectives == [
        {"kind": "all-reduce", "count": 1, "bytes": 35},
        {"kind": "all-gather", "count": 1, "bytes": 64},
    ]


def test_names_and_sizes() -> None:
    assert module_of("jit(f)/transpose(jvp(LBDT))/head/tower_0/norm/cond/branch_0_fun/mul") == (
        "head/tower_0/norm",
        True,
    )
    assert module_of("jit(f)/shard_map/add") == ("(add)", False)
    assert shape_bytes("(s32[], f8e4m3fn[2,3], u16[4]{0:T(8)S(1)})") == 4 + 6 + 8


def test_topologies_that_are_not_there() -> None:
    with pytest.raises(UserError, match="requirements-tpu.txt"):
        make_topology("bogus")


@pytest.mark.tpu
def test_training_step_compiles_for_a_topology(tmp_path: Path) -> None:
    assert importlib.util.find_spec("libtpu"), "needs libtpu: pip install -r requirements-tpu.txt"
    output = tmp_path / "result.json"
    # The configuration's own batch plays no part, even one that 4 chips can't divide.
    options = "--config.model.transfer_layers=0 --config.image_size=(64,64) --batch_sizes=32 --sentences=2 --minutes=30"
    options += " --config.batch_size=6"
    command = [sys.executable, "-m", "lbdt_jax.benchmark", "--config=configs/shapes.py", "--topology=v5e:2x2"]
    run = subprocess.run(
        [*command, *options.split(), f"--output={output}"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    result = load(output)
    assert result["device"]["kind"] == "TPU v5 lite" and result["device"]["count"] == 4
    rows = {row["program"]: row for row in result["rows"]}
    assert set(rows) == {"training step", "encode", "segment", "forward"}
    # Gradients, statistics and metrics are averaged, and nothing else moves between chips.
    assert [row["kind"] for row in rows["training step"]["collectives"]] == ["all-reduce"]
    assert not any(rows[name]["collectives"] for name in ("encode", "segment", "forward"))
    for row in rows.values():
        assert row["fits"] and row["bytes_accessed"] > 0 and 0 < row["share_of_ceiling"] < 1
        assert 1 < len(row["operations"]) <= 10
        assert "(estimated)" in table_line(row) and "memory traffic" in details(row, 4)
    assert rows["encode"]["flop"] + rows["segment"]["flop"] > rows["forward"]["flop"]
    assert plot(result) and "TPU v5 lite" in describe(result)
    assert compare(result, json.loads(output.read_text())).count("1.00") == 8
