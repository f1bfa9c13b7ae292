"""What a configuration can name by ``_target_``, and where a run may write."""

import pytest

from tautnet.config import build, locate
from tautnet.errors import ConfigError
from tautnet.origin import check_places
from tautnet.targets import allowing, find

REFUSED = {
    "other packages": ["os.system", "builtins.eval", "subprocess.run", "torch.load", "torch.hub.load", "hydra.main"],
    "what a module imports": [
        "torch.nn.modules.module.os.system",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.functional.importlib.import_module",
        "tautnet.results.subprocess.run",
        "tautnet.data.hub_access.Thread",
        "tautnet.config.partial",
        "pytorch_lightning.core.saving.inspect",
        "pytorch_lightning.core.saving.torch.load",
    ],
    "functions that read files": [
        "pytorch_lightning.core.saving._load_from_checkpoint",
        "pytorch_lightning.core.saving.load_hparams_from_yaml",
        "pytorch_lightning.utilities.upgrade_checkpoint.main",
        "torch.nn.Module.load_state_dict",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "tautnet.data.cache.cached",
        "tautnet.data.formats.npz.read_npz",
    ],
    "what starts, fetches, sends or unpickles": [
        "pytorch_lightning.cli.LightningCLI",
        "pytorch_lightning.cli.SaveConfigCallback",
        "pytorch_lightning.demos.transformer.WikiText2",
        "pytorch_lightning.demos.mnist_datamodule.MNISTDataModule",
        "pytorch_lightning.serve.ServableModuleValidator",
        "pytorch_lightning.callbacks.BatchSizeFinder",
        "pytorch_lightning.callbacks.LearningRateFinder",
        "pytorch_lightning.callbacks.SpikeDetection",
        "pytorch_lightning.callbacks.LambdaCallback",
        "pytorch_lightning.loggers.WandbLogger",
        "pytorch_lightning.loggers.MLFlowLogger",
        "pytorch_lightning.strategies.DeepSpeedStrategy",
        "pytorch_lightning.strategies.FSDPStrategy",
        "torchmetrics.text.BERTScore",
        "torchmetrics.image.fid.FrechetInceptionDistance",
        "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity",
        "torchmetrics.text.rouge.ROUGEScore",
    ],
    "ours that are no parts": [
        "tautnet.sweeps.folder.make_ready_",
        "tautnet.distributed.run_workers",
        "tautnet.worker.main",
        "tautnet.kernels.native.compiled",
        "tautnet.app.run",
        "tautnet.targets.allowing",
    ],
    "no names": [
        *("", "torch.nn", "torch.nn.", "torch.nn..os", "torch.nn.\0.x", "torch.nn.x y", "torch.nn.__class__.mro"),
        *(
            "torch.nn._reduction.warnings",
            "torch.nn." + "a." * 5000 + "b",
            "torch.nn.\u212b",
            5,
            None,
            ["torch.nn.ReLU"],
        ),
        *("torchevil.nn.ReLU", "torch.nnevil.ReLU", "tautnet", "TORCH.NN.ReLU"),
    ],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_named(kind):
    for path in REFUSED[kind]:
        assert find(path) is None, path
        with pytest.raises(ConfigError, match=r"^activation\._target_="):
            locate(path, "activation")


def test_what_can_be_named():
    for path in (
        *(
            "torch.nn.ReLU",
            "torch.optim.AdamW",
            "torchmetrics.Accuracy",
            "torchmetrics.classification.MulticlassF1Score",
        ),
        *("pytorch_lightning.Trainer", "pytorch_lightning.callbacks.EarlyStopping", "tautnet.backbones.mlp"),
        *("torch.nn.utils.parametrizations.orthogonal", "pytorch_lightning.profilers.SimpleProfiler"),
    ):
        assert find(path) is not None, path


def test_named_packages_are_accepted_meanwhile_and_nothing_that_they_import():
    own, imported = "data_files.write_csv", "data_files.pickle.loads"
    assert find(own) is None
    with allowing(["data_files"]):
        assert find(own).__name__ == "write_csv"
        assert find(imported) is None
        assert find("data_filesx.y") is None
    assert find(own) is None
    with pytest.raises(KeyError), allowing(["data_files"]):
        raise KeyError
    assert find(own) is None


def test_a_refused_target_builds_nothing_inside_it():
    inside = {"_target_": "torch.nn.Linear", "in_features": "no number"}  # would be refused too, were it built
    with pytest.raises(ConfigError, match=r"^net\._target_=os\.mkdir: "):
        build({"_target_": "os.mkdir", "x": inside}, "net")


@pytest.mark.parametrize("name", ["_args_", "_recursive_", "_convert_"])
def test_hydras_other_words_are_no_keys(name):
    with pytest.raises(ConfigError, match=rf"^net\.{name}: no such key"):
        build({"_target_": "torch.nn.ReLU", name: ["canary"]}, "net")


def test_messages_are_one_line_of_visible_characters():
    assert (
        str(ConfigError("a\nb\x1b]0;x\x07 \N{GREEK SMALL LETTER ALPHA}"))
        == "a b\\x1b]0;x\\x07 \N{GREEK SMALL LETTER ALPHA}"
    )


# -- places

RUN = "/runs/one"
ELSEWHERE = [
    {"callbacks": {"x": {"folder": "/runs/other"}}},
    {"callbacks": {"x": {"folder": "pictures"}}},
    {"callbacks": {"x": {"folder": "/runs/one/../other"}}},
    {"callbacks": {"x": {"folder": "/runs/onemore"}}},
    {"callbacks": {"x": {"filename": "../../x"}}},
    {"callbacks": {"x": {"any": ["~/x"]}}},
    {"logger": {"x": {"name": "..", "save_dir": RUN}}},
    {"logger": {"x": {"save_dir": "s3://bucket"}}},
    {"logger": {"x": {"version": "a/../../b"}}},
    {"trainer": {"profiler": {"dirpath": "\\\\server\\share"}}},
    {"run_dir": "/runs/other"},
]
EMPTY = {"callbacks": {}, "logger": {}, "trainer": {}, "run_dir": RUN}


@pytest.mark.parametrize("settings", ELSEWHERE, ids=str)
def test_a_place_outside_of_the_run_is_refused(settings):
    with pytest.raises(ConfigError, match=r"^(callbacks|logger|trainer|run_dir)"):
        check_places(EMPTY | settings, RUN, ["callbacks=x", "logger=y", "seed=1"])


def test_places_inside_of_the_run_and_texts_that_are_no_places_are_accepted():
    callbacks = {"x": {"folder": f"{RUN}/pictures", "monitor": "val/acc", "filename": "best", "include": ["*", "a.b"]}}
    check_places(EMPTY | {"callbacks": callbacks, "logger": {"y": {"save_dir": RUN, "version": ""}}}, RUN, [])


@pytest.mark.parametrize(
    "override", ["callbacks.x.folder=/else", "+callbacks.x={folder: /else}", "++callbacks.x.folder=/else"]
)
def test_the_command_line_names_other_places(override):
    check_places(EMPTY | {"callbacks": {"x": {"folder": "/else"}}}, RUN, [override])
