"""What a benchmark writes: beside what was measured on other CPUs, in the place of what was measured on this one."""

import json

import pytest
from rusttorch.bench import results

LINE = {"op": "add", "n": 10, "shape": "", "dtype": "float32", "threads": 1, "layout": "contiguous"}


@pytest.mark.parametrize("elsewhere", [{"cpu": "another"}, {"instruction_set": "AVX2"}])
def test_lines_of_two_machines(tmp_path, monkeypatch, elsewhere):
    path, here = tmp_path / "results.jsonl", results.machine()
    for machine, ratio in ((here, 1), (here | elsewhere, 2), (here, 3)):
        monkeypatch.setattr(results, "machine", lambda machine=machine: machine)
        results.save(path, "ops", [LINE | {"ratio": ratio}])
    assert [line["ratio"] for line in results.load(path)] == [3, 2]
    assert json.loads(path.read_text().splitlines()[0])["machine"] == here
