"""A tracker in the checkpoints of accelerate."""

from accelerate import Accelerator
from loops import build

from edm2lite.ema import PowerFunctionEMA


def test_averages_registered_with_accelerate_continue_from_its_checkpoint(tmp_path):
    def tracker():
        accelerator = Accelerator(cpu=True)
        net = accelerator.prepare(build())
        accelerator.register_for_checkpointing(ema := PowerFunctionEMA(net))
        return accelerator, net, ema

    accelerator, net, ema = tracker()
    for nimg in (10, 25):
        net[0].weight.data.mul_(1.5)
        ema.update(nimg)
    accelerator.save_state(tmp_path / "checkpoint")
    accelerator, net, again = tracker()
    accelerator.load_state(tmp_path / "checkpoint")
    assert again.run == ema.run and again.history == [[10, 1], [15, 1]]
    for one in (ema, again):  # and both go on alike
        one.update(40)
    for sigma_rel in ema.sigma_rels:
        expected = ema.state_dict_of(sigma_rel)
        found = again.state_dict_of(sigma_rel)
        assert all(found[name].equal(value) for name, value in expected.items())
