"""One program, three platforms: lowered here for chips that are not here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from driftar_jax.layers import attention as attention_lib
from driftar_jax.layers.attention import attention, attention_with_entropy


def _lowered(platform, f, *arrays):
    # Where arrays lie in a GPU's loop is no part of what jax promises to read in later versions.
    checks = [export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
    made = export.export(jax.jit(f), platforms=[platform], disabled_checks=checks)(*arrays)
    return made.mlir_module()


def _loops(text):
    return len(re.findall(r"stablehlo\.while", text))


@pytest.fixture
def arrays(monkeypatch):
    monkeypatch.setattr(attention_lib, "_CACHED", 0)
    monkeypatch.setattr(attention_lib, "_AT_ONCE", 4 * 2 * 16 * 16)
    return tuple(jax.ShapeDtypeStruct((4, 16, 2, 8), jnp.float32) for _ in range(3))


def test_going_image_by_image_is_for_one_cpu(arrays):
    def plain(q, k, v):
        return attention(q, k, v, None)

    loops = {name: _loops(_lowered(name, plain, *arrays)) for name in ("cpu", "cuda", "tpu")}
    assert loops == {"cpu": 1, "cuda": 0, "tpu": 0}


def test_the_entropy_layer_is_a_kernel_on_tpus_and_few_images_at_a_time_on_gpus(arrays):
    def layer(q, k, v):
        return attention_with_entropy(q, k, v, content_start=4, chunk=8)

    text = {name: _lowered(name, layer, *arrays) for name in ("cpu", "cuda", "tpu")}
    assert "tpu_custom_call" in text["tpu"] and _loops(text["tpu"]) == 0
    assert "tpu_custom_call" not in text["cpu"] + text["cuda"]
    assert "4x2x8x16xf32" in text["cpu"]  # [B, H, rows, N]: rows in chunks, all images
    assert "1x2x8x16xf32" in text["cuda"] and "4x2x8x16xf32" not in text["cuda"]


def test_weights_that_a_cache_holds_are_left_to_xla_everywhere():
    small = tuple(jax.ShapeDtypeStruct((4, 16, 2, 8), jnp.float32) for _ in range(3))
    text = {n: _lowered(n, attention_with_entropy, *small) for n in ("cpu", "cuda", "tpu")}
    assert "tpu_custom_call" not in text["tpu"]
    assert all("4x2x16x16xf32" in of_one for of_one in text.values())


def test_few_images_at_a_time_are_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((6, 9, 2, 4)), jnp.float32) for _ in range(3))
    mask, content = (jnp.asarray(rng.random((6, n)) < 0.7) for n in (9, 9))
    for seen, counts in ((None, None), (mask[:, None], content), (mask[:1, None], content[:1])):
        plain = lambda *a: attention_lib._with_entropy(*a, content_start=2, floor=0.0, chunk=4)  # noqa: E731
        want = jax.jit(plain)(q, k, v, seen, counts, None)
        monkeypatch.setattr(attention_lib, "_AT_ONCE", 4 * 4 * 2 * 9 * 9)  # 4 of 6: 3 divide
        some = jax.jit(functools.partial(attention_lib._few_images, plain))
        got = some(q, k, v, seen, counts, None)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
