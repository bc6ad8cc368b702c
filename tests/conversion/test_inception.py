"""The official InceptionV3 file to a workdir and back; what does not fit is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_files import tensor, write_zip

from driftar_jax.conversion import checkpoint, rules
from driftar_jax.conversion import inception as conversion
from driftar_jax.features import inception

CLASSES = 5
pytestmark = pytest.mark.timeout(500)  # the network has one size, of 87 MiB


@pytest.fixture(scope="module")
def wanted():
    """Our path -> shape."""
    return rules.shapes_of(inception.abstract(inception.InceptionV3(num_classes=CLASSES)))


@pytest.fixture(scope="module")
def official(wanted):
    draw = np.random.default_rng(0)
    ours = {path: draw.random(shape, np.float32) for path, shape in wanted.items()}
    official, report = rules.to_official(ours, conversion.RULES)
    report.check()
    return {name: np.ascontiguousarray(array) for name, array in official.items()}


@pytest.mark.slow  # test_parity_inception takes the same way
def test_file_to_workdir_and_back(official, tmp_path):
    counters = {n[:-6] + "num_batches_tracked": np.int64([0]) for n in official if "bn.weight" in n}
    arrays = official | counters
    tree = {n: tensor(n, a, "Long" if n in counters else "Float") for n, a in arrays.items()}
    source = write_zip(tmp_path / "weights-inception-2015-12-05-6726825d.pth", tree, arrays)
    told = []
    workdir, returned = tmp_path / "inception", tmp_path / "back.safetensors"
    report = checkpoint.forward("inception", str(source), str(workdir), "model", tell=told.append)
    assert report.dropped == list(counters) and len(report.mapped) == len(official)
    assert f"{next(iter(counters))} [1]: not needed" in told
    written = json.loads((workdir / "report.json").read_text())
    assert written["dropped"] == list(counters) and written["missing"] == written["unused"] == []
    module, params = inception.load(workdir)
    assert module.num_classes == CLASSES
    np.testing.assert_array_equal(
        params["Mixed_6b"]["branch7x7_2"]["conv"]["kernel"],
        official["Mixed_6b.branch7x7_2.conv.weight"].transpose(2, 3, 1, 0),
    )
    checkpoint.back("inception", str(workdir), str(returned), "model_ema", tell=told.append)
    again = load_file(returned)
    assert again.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_names_that_do_not_fit_are_told(official, wanted):
    shapes = {name: array.shape for name, array in official.items()}
    assert rules.plan(shapes, conversion.RULES, wanted).complete
    shapes.pop("Mixed_7c.branch_pool.bn.running_var")
    shapes["AuxLogits.fc.weight"] = (5, 768)
    shapes["fc.bias"] = (6,)
    assert rules.plan(shapes, conversion.RULES, wanted).problems() == [
        "unused: AuxLogits.fc.weight",
        "missing: Mixed_7c/branch_pool/bn/var",
        "wrong shape: fc.bias [6], allowed [5] for fc_bias",
    ]


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="fc.weight: got None, allowed InceptionV3's"):
        conversion.module({"head.weight": (3, 4)})
    with pytest.raises(ValueError, match="task: got 'vae', allowed 'inception'"):
        inception.module_of({"task": "vae"})
    for fields in (None, {}, {"num_classes": "5"}, {"num_classes": 0}, [1008]):
        with pytest.raises(ValueError, match="inception.num_classes: got .*, allowed a number"):
            inception.module_of({"task": "inception", "inception": fields})
