"""The code of docs/pytorch.md gives the tokens of the decoder, from the file of an export."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax import model
from driftar_jax.storage import hub

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "pytorch.md"


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
def test_the_page_reads_an_export_and_makes_the_same_tokens(tmp_path, guided):
    torch = pytest.importorskip("torch", reason="torch is not in this environment")
    settings = tiny.config("drift", drift__guidance_max=3.0 if guided else 1.0)
    parts = model.build(settings, tiny.IMAGES)
    rng = np.random.default_rng(0)
    shapes = model.shapes(settings, tiny.IMAGES)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
    hub.write(tmp_path, params, {"class_names": ["a"], "task": "drift"}, 1, settings.to_dict())

    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    theirs = names["TokenDecoder"](tmp_path)

    z = rng.standard_normal((2, 6, parts.host.width), np.float32)
    entropy = rng.uniform(0.05, 0.95, (2, 6)).astype(np.float32)
    eps = rng.standard_normal((2, 6, tiny.IMAGES.token_dim), np.float32)
    alpha = np.full((2, 6), 1.7, np.float32) if guided else None
    mu, sigma = parts.prior.apply({"params": params["prior"]}, z, entropy)
    x0 = mu + sigma[..., None] * eps
    want = parts.decoder.apply(
        {"params": params["decoder"]}, x0[..., None, :], mu, sigma, jnp.asarray(z), entropy, alpha
    )[..., 0, :]

    asked = [torch.from_numpy(a) for a in (z, entropy, eps)]
    their_mu, their_sigma, their_x0 = theirs.start(*asked)
    np.testing.assert_allclose(their_mu.numpy(), mu, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(their_sigma.numpy(), sigma, rtol=1e-5, atol=1e-6)
    scale = None if alpha is None else torch.from_numpy(alpha)
    found = theirs(their_x0, their_mu, their_sigma, asked[0], asked[1], scale).numpy()
    assert np.abs(found - np.asarray(x0)).max() > 0.1  # the decoder does something
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
