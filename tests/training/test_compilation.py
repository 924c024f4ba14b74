"""What torch.compile is given: how many graphs a step has, and that later steps add none."""

from functools import partialmethod

import pytest
import torch
from torch import nn

from edm2lite.training import distributed, load_config
from edm2lite.training.compilation import compile_, settings, uncompiled
from edm2lite.training.trainer import Trainer

UNET = ("net.backbone.model_channels=4", "net.backbone.head_channels=4")
MANY_SHAPES = (  # of blocks, as in the U-Nets of the paper
    "net.backbone.channel_mult=[1, 2, 3, 4]", "net.backbone.attn_resolutions=[2, 1]",
)  # fmt: skip
TRANSFORMER = (
    "net.backbone.width=16", "net.backbone.num_heads=2", "net.backbone.num_blocks=2",
    "net.backbone.patch_size=4",
)  # fmt: skip
NETWORKS = {
    "unet": ("digits", UNET),
    "dit": ("digits-dit", TRANSFORMER),
    "mp_dit": ("digits-mp-dit", TRANSFORMER),
}
of_every_network = pytest.mark.parametrize("network", NETWORKS)


class Graphs:
    """A backend that counts the graphs that it is given, and how often they run."""

    def __init__(self):
        self.made = self.runs = 0

    def __call__(self, graph, example_inputs):
        self.made += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs(monkeypatch):
    torch._dynamo.reset()
    counted = Graphs()
    compiled = partialmethod(nn.Module.compile, backend=counted, fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counted


@pytest.fixture
def group(monkeypatch):
    """A group of one process, in which the loss is wrapped as in larger ones."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with distributed.process_group():
        yield


def trainer_of(folder, network, *changes):
    preset, small = NETWORKS[network]
    sets = {"batch_size": 8, "microbatch": 3, "sample_count": 5, "sample_steps": 2}
    sets.update(change.split("=", 1) for change in changes)
    size = int(sets["batch_size"])
    cadences = dict.fromkeys(("sample_nimg", "status_nimg", "snapshot_nimg"), size)
    sets.update(cadences, total_nimg=2 * size, checkpoint_nimg=2 * size, compile="true")
    config = load_config(preset, (*small, *(f"{key}={value}" for key, value in sets.items())))
    return Trainer(config, folder / "a", torch.device("cpu"))


def micro_batches_are_graphs(trainer, graphs, expected):
    """Train to the end; a step of three micro-batches runs three times as many graphs."""
    made = []
    step = trainer.train_step

    def counted_step():
        before = graphs.runs
        step()
        made.append(graphs.made)
        assert graphs.runs - before == 3 * expected

    trainer.train_step = counted_step
    trainer.train()
    return made


@of_every_network
def test_the_loss_of_one_process_is_one_graph_of_each_size(network, graphs, tmp_path):
    made = micro_batches_are_graphs(trainer_of(tmp_path, network), graphs, 1)
    assert made == [2, 2]  # of 3 and of 2 images; later steps and grids of samples add none


@of_every_network
def test_the_loss_of_replicas_is_one_graph_too(network, graphs, group, tmp_path):
    made = micro_batches_are_graphs(trainer_of(tmp_path, network), graphs, 1)
    assert made == [2, 2]


@of_every_network
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
def test_every_block_of_a_sharded_network_is_compiled(network, graphs, group, tmp_path):
    changes = MANY_SHAPES if network == "unet" else ()
    trainer = trainer_of(tmp_path, network, "parallel=fsdp", "batch_size=9", *changes)
    blocks = trainer.net.backbone.blocks()
    shapes = {tuple(p.shape for p in block.parameters()) for block in blocks}
    assert len(shapes) > 8 or network != "unet"  # where torch stops by default
    made = micro_batches_are_graphs(trainer, graphs, len(blocks))
    assert made == [made[0]] * 2 and made[0] >= len(shapes)


def test_settings_of_the_user_return_and_hooks_make_no_graphs(graphs):
    config = torch._dynamo.config
    before = config.optimize_ddp, config.recompile_limit, config.accumulated_recompile_limit
    layer = nn.Linear(2, 2)
    compile_([layer])
    with settings():
        layer(torch.ones(1, 2))
    with uncompiled():
        layer(torch.ones(3, 2))
    assert graphs.made == graphs.runs == 1
    after = config.optimize_ddp, config.recompile_limit, config.accumulated_recompile_limit
    assert after == before
