from __future__ import annotations

import pytest

from autoscale.policy import desired_replicas
from gateway.config import ModelConfig, Replicas


@pytest.mark.parametrize("least", [0, 1, 3])
def test_a_model_gets_the_least_that_its_config_asks_for(least: int) -> None:
    assert desired_replicas(ModelConfig(replicas=Replicas(min=least, max=5))) == least
