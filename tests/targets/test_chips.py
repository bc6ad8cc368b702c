"""Names of chips that are not here; with their compilers, what these say (`slow`)."""

import importlib.util

import pytest

from driftar_jax.targets import chips, program

PROGRAM = """
  %g = bf16[192,384]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1}}
  %g.1 = bf16[192,384]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1}}
  %h = f32[4,6]{1,0} all-gather(%q), channel_id=8
  %r = f32[4,6]{1,0} all-reduce(%q), channel_id=7, to_apply=%add
  %s = f32[4,6]{1,0} all-reduce(%q), to_apply=%add
  %t = f32[4,6]{1,0} all-reduce(%q), to_apply=%add
"""


def test_a_collective_that_is_written_in_every_fusion_counts_once():
    assert program.count_collectives(PROGRAM) == {
        "all-gather": (2, 192 * 384 * 2 + 24 * 4),
        "all-reduce": (3, 3 * 24 * 4),
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e:2x4", "allowed tpu:v5e:4x4 | "),
        ("tpu:tpu7:2x2x1", "(did you mean 'tpu7x'?)"),
        ("gpu:h10:8", "(did you mean 'h100'?)"),
        ("tpu:v5e:eight", "2 sides of a slice"),
        ("tpu:v5p:2x2", "3 sides of a slice"),
        ("gpu:h100:12", "1 to 8 of one host or a multiple of 8"),
        ("gpu:h100:", "1 to 8 of one host or a multiple of 8"),
    ],
)
def test_a_wrong_name_is_one_line(name, said):
    with pytest.raises(ValueError, match="^target: got") as refused:
        chips.describe(name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "how"), [("tpu:v5e:2x4", "requirements-aot.txt"), ("gpu:h100:8", "3.4 GB")]
)
def test_a_compiler_that_is_not_installed_is_one_line(name, how, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=f"^target: got '{name}', allowed chips .*{how}"):
        chips.describe(name)


@pytest.mark.parametrize("kind", chips.GPUS)
def test_the_package_holds_what_the_compiler_is_told_of_every_gpu(kind):
    text = (chips.importlib.resources.files(chips.__package__) / "gpus" / f"{kind}.txt").read_text()
    assert "device_memory_size: " in text and text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 298.50G of 15.75G hbm. Exceeded", int(298.5 * 2**30)),
        ("RESOURCE_EXHAUSTED: used 900.0M of 15.75G hbm", 900 * 2**20),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (54.91G) exceeds available HBM (15.75G).",
            int(54.91 * 2**30),
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_refused_program_wants_is_read(said, size):
    assert program._asked_for(said) == size
