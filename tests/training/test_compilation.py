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


def graphs_of(trainer, graphs, runs):
    """Numbers of graphs after each step of a training to its end, each of which runs so many."""
    made = []
    step = trainer.train_step

    def counted_step():
        before = graphs.runs
        step()
        made.append(graphs.made)
        assert graphs.runs - before == runs

    trainer.train_step = counted_step
    trainer.train()
    return made


@of_every_network
def test_the_loss_is_one_graph_of_each_size(network, graphs, tmp_path):
    made = graphs_of(trainer_of(tmp_path, network), graphs, runs=3 + 2)
    # micro-batches of 3 and 2 images, and weights before and after them; later steps and grids of
    # samples add none
    assert made == [2 + 2, 2 + 2]


@of_every_network
def test_the_loss_of_replicas_is_one_graph_too(network, graphs, group, tmp_path):
    made = graphs_of(trainer_of(tmp_path, network, "batch_size=6"), graphs, runs=2 + 2)
    assert made == [1 + 2, 1 + 2]


@of_every_network
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
def test_every_block_of_a_sharded_network_is_compiled(network, graphs, group, tmp_path):
    changes = MANY_SHAPES if network == "unet" else ()
    trainer = trainer_of(tmp_path, network, "parallel=fsdp", "batch_size=6", *changes)
    blocks = trainer.net.backbone.blocks()
    shapes = {tuple(p.shape for p in block.parameters()) for block in blocks}
    assert len(shapes) > 8 or network != "unet"  # where torch stops by default
    made = graphs_of(trainer, graphs, runs=2 * len(blocks))
    assert made == [made[0]] * 2 and made[0] >= len(shapes)


def test_settings_of_the_user_return_and_hooks_make_no_graphs(graphs):
    config = torch._dynamo.config
    before = config.recompile_limit, config.accumulated_recompile_limit
    layer = nn.Linear(2, 2)
    compile_([layer])
    with settings():
        layer(torch.ones(1, 2))
    with uncompiled():
        layer(torch.ones(3, 2))
    assert graphs.made == graphs.runs == 1
    assert before == (config.recompile_limit, config.accumulated_recompile_limit)
