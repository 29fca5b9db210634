"""The MLP: what it refuses, and that every hidden layer receives the conditions."""

import pytest
import torch

from vaelab import MLP


def test_conditions_that_it_has_no_input_for_are_refused():
    with pytest.raises(ValueError, match="n_conditions=0, but got 3 conditions"):
        MLP(4, 2)(torch.zeros(5, 4), torch.zeros(5, 3))
    told = MLP(4, 2, n_conditions=3)
    with pytest.raises(ValueError, match="n_conditions=3, but got 0"):
        told(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="n_conditions=3, but got 2"):
        told(torch.zeros(5, 4), torch.zeros(5, 2))
    assert told(torch.zeros(5, 4), torch.zeros(5, 3)).shape == (5, 2)
    assert MLP(4, 2)(torch.zeros(5, 4), None).shape == (5, 2)


def test_conditions_without_a_hidden_layer_are_refused():
    with pytest.raises(ValueError, match="without hidden layers cannot use its 3 conditions"):
        MLP(4, 2, n_layers=0, n_conditions=3)
    assert len(MLP(4, 2, n_layers=0)) == 1


def test_every_hidden_layer_receives_the_conditions_and_the_output_does_not():
    torch.manual_seed(0)
    network = MLP(4, 2, n_layers=3, n_hidden=5, n_conditions=3, normalization=None).eval()
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in linear] == [4 + 3, 5 + 3, 5 + 3, 5]
    x, conditions = torch.randn(6, 5, 4), torch.eye(3)[[0, 1, 2, 0, 1]]  # (5, 3), for each of 6
    expected = x
    for layer in linear[:-1]:
        γ = conditions.expand(6, 5, 3)
        expected = torch.relu(layer(torch.cat([expected, γ], dim=-1)))
    torch.testing.assert_close(network(x, conditions), linear[-1](expected))


def test_options_out_of_range_are_refused():
    for options in ({"n_layers": -1}, {"n_hidden": 0}, {"dropout_rate": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*; it must be "):
            MLP(4, 2, **options)
    with pytest.raises(ValueError, match="normalization is 'group'"):
        MLP(4, 2, normalization="group")
    with pytest.raises(ValueError, match="without an output layer"):
        MLP(4, n_layers=0)
