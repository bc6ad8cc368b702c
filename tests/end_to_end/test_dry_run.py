"""`train --dry_run` as a user calls it."""


def test_a_dry_run_says_what_a_step_needs_and_trains_nothing(call, tmp_path):
    done = call(
        "train",
        "--config=configs/classifier.py:tiny",
        f"--workdir={tmp_path / 'run'}",
        "--dry_run",
        "--peak_tflops=2",
        "--peak_gb_s=10",
    )
    assert (done.status, done.stderr) == (0, "")
    assert "bytes per device   parameters" in done.stdout
    assert "under 2 TFLOP/s and 10 GB/s a device" in done.stdout
    assert "nothing was run" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_is_named(call):
    done = call("train", "--config=configs/classifier.py:tiny", "--dry_run", "--config.mesh.fsdp=3")
    assert done.status == 2 and done.compiled == 0
    assert done.stderr.startswith("driftar_jax: mesh: got data=-1 fsdp=3 tensor=1, allowed axes")
