"""Linear heads in closed form: calibrated probabilities, even odds where asked for, the same in a score model."""

from __future__ import annotations

import pytest
import torch

from poise.errors import DataError
from poise.functional.statistics import expected_calibration_error
from poise.models.channels import COST
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.train.linear_fit import LinearFit, fit_linear, set_head


def two_normals(count: int = 2000, share: float = 0.2) -> tuple[torch.Tensor, list[float]]:
    """Features that are normal around 1 for the label 1 and around -1 for 0: the logit is 2 x + log odds."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(count, generator=generator) < share).double()
    noise = torch.randn(count, 3, generator=generator).double()
    return noise + torch.tensor([2.0, 0.0, 0.0]).double() * (labels[:, None] - 0.5), labels.tolist()


def fitted(**options: bool) -> tuple[LinearFit, list[float]]:
    features, labels = two_normals()
    return fit_linear(features, labels, [str(n) for n in range(len(labels))], **options), labels


@pytest.mark.parametrize(("balanced", "expected"), [(False, -1.386), (True, 0.0)])
def test_the_odds_are_those_of_the_rows_or_even(balanced: bool, expected: float) -> None:
    fit, _ = fitted(balanced=balanced)
    middle, above = fit.logits_of(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).tolist()
    assert middle == pytest.approx(expected, abs=0.3)
    assert above - middle == pytest.approx(2.0, abs=0.4)


def test_probabilities_mean_what_they_say_on_prompts_of_other_folds() -> None:
    fit, labels = fitted()
    assert expected_calibration_error(torch.sigmoid(fit.logits).numpy(), labels) < 0.05


def test_the_answers_to_one_prompt_cannot_vouch_for_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 100, generator=generator).repeat_interleave(5, 0)  # they say which prompt it is, no more
    labels = (torch.rand(80, generator=generator) < 0.5).double().repeat_interleave(5).tolist()
    told, guessed = (
        (fit_linear(features, labels, names).logits > 0).double() == torch.tensor(labels).double()
        for names in ([str(n) for n in range(400)], [str(n // 5) for n in range(400)])
    )
    assert told.double().mean() > 0.9
    assert guessed.double().mean() < 0.75


def test_a_score_model_says_what_was_fitted() -> None:
    model = ScoreModel(load_backbone("random:llama"), (COST,), depth=1, pooling="mean", hidden=0)
    width = len(model.feature_mean)
    features = torch.randn(50, width) * 3 + 1
    fit = fit_linear(features, (features[:, 0] > 1).double().tolist(), [str(n) for n in range(50)])
    set_head(model, COST, fit)
    assert torch.allclose(model(features)[:, 0].double(), fit.logits_of(features), atol=1e-3)
    assert model.channel("cost").calibration is not None


def test_one_outcome_alone_cannot_be_learned() -> None:
    with pytest.raises(DataError, match="both sides of 1/2"):
        fit_linear(torch.randn(5, 2), [1.0] * 5, list("abcde"))
