import numpy as np
from numpy.testing import assert_array_equal

from detector.images import Images
from detector.runtime import Guard
from service.client import Client
from service.server import Running


def test_served_equals_in_process(server: Running, guard: Guard, mixed: Images) -> None:
    """A batch that fits one run gets the verdicts that it gets in process, bit for bit."""
    with Client(server.address) as client:
        served = client.inspect(mixed[:16], outputs=True)
    own = guard.inspect(mixed[:16])
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        assert_array_equal(getattr(served, name), getattr(own, name))
    for name, output in own.outputs.items():
        assert_array_equal(served.outputs[name], output)
    assert 0 < np.count_nonzero(own.is_adversarial) < 16
