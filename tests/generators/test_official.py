"""Published weights become the networks of this project; those that don't fit are refused."""

import numpy as np
import pytest
from helpers import DATA

from pulse_jax.generators.official import from_pulse, read


def pulse_states():
    return [
        dict(read(DATA / f"sg1_torch_r128_{network}_zip.pt"))
        for network in ("synthesis", "mapping")
    ]


def test_hyperparameters_of_pulse_follow_from_its_shapes():
    module, params = from_pulse(*pulse_states())
    assert (module.resolution, module.channels) == (128, (24, 24, 24, 24, 16, 8))
    assert (module.latent_size, module.mapping_layers, module.norm_epsilon) == (48, 8, 1e-5)
    assert sorted(params) == ["mapping", "synthesis"]
    assert params["synthesis"]["128x128_conv_up"]["kernel"].shape == (3, 3, 16, 8)

    module, params = from_pulse(read(DATA / "sg1_torch_r32_synthesis_zip.pt"))
    assert (module.resolution, module.channels, module.latent_size) == (32, (20, 20, 20, 16), 24)
    assert sorted(params) == ["synthesis"]


def test_gaussian_fit_becomes_the_latent_fit():
    fit = read(DATA / "gaussian_fit.pt")
    synthesis = read(DATA / "pulse_e2e_synthesis_zip.pt")
    _, params = from_pulse(synthesis, gaussian_fit=fit)
    assert sorted(params) == ["latent_fit", "synthesis"]
    np.testing.assert_array_equal(params["latent_fit"]["std"], fit["std"])
    fit["mean"] = fit["mean"][:-1]
    with pytest.raises(ValueError, match="latent_fit/mean"):
        from_pulse(synthesis, gaussian_fit=fit)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torgb.weight", None),
        ("torgb.weight", np.zeros((3, 9, 1, 1))),
        ("torgb.bias", "text"),
        ("blocks.4x4.const", np.zeros((1, 23, 4, 4))),
        ("blocks.16x16.conv1.weight", None),
        ("blocks.64x64.epi1.style_mod.lin.weight", np.zeros((32, 47))),
        ("blocks.64x64.conv0_up.intermediate.kernel", np.ones((1, 1, 3, 3)) / 9),
        ("blocks.256x256.conv1.weight", np.zeros((8, 8, 3, 3))),
        ("blocks.64x64.conv0_up.intermediate.kernel", np.zeros((0, 1, 3, 3))),
        ("blocks.2x2.conv1.weight", np.zeros((8, 8, 3, 3))),
        ("blocks.4x4.conv1.weight", np.zeros((24, 24, 3, 3))),
        ("dense3.weight", np.zeros((48, 47))),
        ("dense8.weight", np.zeros((48, 48))),
        ("dense2.bias", None),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(name, value):
    synthesis, mapping = pulse_states()
    state = mapping if name.startswith("dense") else synthesis
    state[name] = value
    if value is None:
        del state[name]
    with pytest.raises(ValueError, match=r"PULSE|shape"):
        from_pulse(synthesis, mapping)


@pytest.mark.parametrize("states", [([1],), ({1: 2},), ({}, {}), (np.zeros(3),)])
def test_objects_that_are_no_state_dicts_are_refused(states):
    with pytest.raises(ValueError, match="PULSE"):
        from_pulse(*states)
