"""Archives and tables of small pictures, written for tests."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from driftar_jax.data import pipeline


def picture(value, size=(6, 5), mode="RGB", form="PNG"):
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, form)
    return out.getvalue()


def archive(path, samples):
    """A tar file of `[(member name, bytes)]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in samples:
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            out.addfile(facts, io.BytesIO(data))
    return path


def numbered(first, count, **more):
    """Samples whose red value is their number and whose class is its last bit."""
    made = []
    for i in range(first, first + count):
        made += [(f"{i:05d}.png", picture((i, 0, 0))), (f"{i:05d}.cls", str(i % 2).encode())]
        made += [(f"{i:05d}.{ending}", write(i)) for ending, write in more.items()]
    return made


def table(path, values, names=("even", "odd"), told=True, group=4, **more):
    """A parquet file as Hugging Face writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": picture((i, 0, 0)), "path": None} for i in values],
        "label": pyarrow.array([i % 2 for i in values], pyarrow.int64()),
        **more,
    }
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    made = pyarrow.table(columns)
    if told:
        facts = {"info": {"features": features}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(facts)})
    pyarrow.parquet.write_table(made, path, row_group_size=group)
    return path


def values_of(source):
    images, labels = pipeline.all_images(source)
    reds = images[:, 0, 0, 0]
    np.testing.assert_array_equal(labels, reds % 2)
    return reds.tolist()


def cut(path):
    """Lose the second half of a file, but for a little."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])
