"""Runs on archives and tables: stopped and started again, they end in the same bits."""

import io

import chex
import pytest
from PIL import Image

import driftar_jax

pyarrow = pytest.importorskip("pyarrow")
OWN = "--config=configs/mar_small.py:tiny"


def _picture(i):
    data = io.BytesIO()
    Image.new("L", (8, 8), 8 * i).save(data, "PNG")
    return data.getvalue()


def _webdataset(folder):
    import tarfile

    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as out:
            for i in range(12 * part, 12 * part + 12):
                for ending, data in (("png", _picture(i)), ("cls", str(i % 2).encode())):
                    facts = tarfile.TarInfo(f"{i:03d}.{ending}")
                    facts.size = len(data)
                    out.addfile(facts, io.BytesIO(data))


def _parquet(folder):
    import pyarrow.parquet

    columns = {"image": [{"bytes": _picture(i)} for i in range(24)]}
    columns["label"] = [i % 2 for i in range(24)]
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=5)


@pytest.mark.slow  # test_own has the batches alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("write", [_webdataset, _parquet])
def test_a_stopped_run_ends_in_the_same_bits(call, tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    words = (OWN, f"--config.data.name={write.__name__[1:]}:{data}", "--config.train.batch_size=8")
    words += ("--config.train.checkpoint_every=2",)
    runs = [tmp_path / name for name in ("whole", "stopped")]
    whole, stopped = (f"--workdir={run}" for run in runs)
    # Batches of 8 out of 22 pictures: step 3 is of two epochs.
    assert call("train", *words, "--config.train.steps=6", whole).status == 0
    assert call("train", *words, "--config.train.steps=2", stopped).status == 0
    done = call("train", *words, "--config.train.steps=6", stopped)
    assert done.status == 0 and "from step 2 on" in done.stdout
    chex.assert_trees_all_equal(*(driftar_jax.load(run).params for run in runs))
