"""Hostile and careless configs: as YAML, and as overrides of `nvsubq train`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from guard import MARKER, Call, Case

PAYLOAD = f"touch {MARKER}"
CODE = f"__import__('pathlib').Path('{MARKER}').touch()"

MODEL = (
    "_target_: nvsubq.NDBackbone, spatial_dims: 2, in_channels: 1, num_classes: 2, dims: [8], depths: [1], "
    "mixer: {_target_: nvsubq.NDMixer, _partial_: true, "
    "core: {_target_: nvsubq.cores.RGLRU, _partial_: true}}"
)

TARGETS = {
    "os.system": f"command: {PAYLOAD}",
    "os.popen": f"cmd: {PAYLOAD}",
    "posix.system": f"command: {PAYLOAD}",
    "builtins.eval": f'_args_: ["{CODE}"]',
    "builtins.exec": f'_args_: ["{CODE}"]',
    "subprocess.Popen": f"args: [touch, {MARKER}]",
    "importlib.import_module": "name: antigravity",
    "runpy.run_path": "path_name: x.py",
    "pickle.loads": "data: x",
    "torch.load": "f: x.pt\nweights_only: false",
    "torch.hub.load": "repo_or_dir: a/b\nmodel: c",
    "numpy.load": "file: x.npy\nallow_pickle: true",
    "hydra.utils.instantiate": f"config: {{_target_: os.system, command: {PAYLOAD}}}",
    "omegaconf.OmegaConf.register_new_resolver": "name: x\nresolver: y",
    "functools.partial": f'_args_: ["{CODE}"]',
    "nvsubq.lazy_config.allow_targets": '_args_: ["os.*"]',
    "nvsubq.lazy_config.targets.allow": '_args_: [["os.*"]]',
    "nvsubq.importlib.import_module": "name: os",
    "nvsubq.training.runner.os.system": f"command: {PAYLOAD}",
    "nvsubq.training.run_folder.shutil.rmtree": "path: /nowhere",
    "nvsubq.cli.main.main": '_args_: [[train, "core._target_=os.system"]]',
    "nvsubq.training.unfinished.os.system": f"command: {PAYLOAD}",
    "nvsubq.training.durable.write_whole": "path: x\ndata: y",
    "torch.nn.functional.torch.load": "f: x.pt",
    "torch.nn.Module.__init__": "{}",
    "torch.nn.modules.module.warnings.sys.exit": "{}",
    "torch.optim.lr_scheduler.types.FunctionType": "{}",
    "lightning.pytorch.cli.instantiate_class": (
        f"args: []\ninit: {{class_path: subprocess.Popen, init_args: {{args: [touch, {MARKER}]}}}}"
    ),
    "lightning.pytorch.cli.LightningCLI": "{}",
    "lightning.LightningModule.load_from_checkpoint": "checkpoint_path: x.ckpt\nweights_only: false",
    "lightning.pytorch.core.saving.load_hparams_from_yaml": "config_yaml: x.yaml",
    "lightning.fabric.utilities.load.os.system": f"command: {PAYLOAD}",
    "lightning.pytorch.utilities.upgrade_checkpoint.main": "{}",
    "mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel.from_pretrained": "pretrained_model_name: a/b",
    "nvsubq.study.worker.main": 'config_text: "{}"\nfolder: .\noverrides: []',
    "nvsubq.training.train": "config: {}\nfolder: x",
    "nvsubq.ops.native.library.open_file": "path: x.so",
    "nvsubq.models.save_pretrained": f"model: {{{MODEL}}}\nfolder: saved",
    "nvsubq.NDBackbone.save_pretrained": f"self: {{{MODEL}}}\nfolder: saved",
    "nvsubq.NDBackbone.from_pretrained": "folder: .",
    "torch.nn.Module.apply": f"self: {{{MODEL}}}\nfn: {{_target_: torch.nn.Identity}}",
    "torch.optim.optimizer.register_optimizer_step_pre_hook": "hook: {_target_: torch.nn.Identity}",
    "lightning.fabric.plugins.TorchCheckpointIO.load_checkpoint": (
        "self: {_target_: lightning.fabric.plugins.TorchCheckpointIO}\npath: x.ckpt\nweights_only: false"
    ),
    "lightning.fabric.plugins.TorchCheckpointIO.save_checkpoint": (
        "self: {_target_: lightning.fabric.plugins.TorchCheckpointIO}\ncheckpoint: {}\npath: x.ckpt"
    ),
    "lightning.pytorch.plugins.io.TorchCheckpointIO.remove_checkpoint": "self: null\npath: .",
    "lightning.Trainer.save_checkpoint": "self: {_target_: lightning.Trainer}\nfilepath: x.ckpt",
    "lightning.pytorch.loggers.csv_logs.ExperimentWriter": "log_dir: x",
    "torchmetrics.text.BERTScore": "model_name_or_path: a/b",
    "..os.system": f"command: {PAYLOAD}",
    "nvsubq.cores.Mamba; os.system": "d_model: 8",
    "nvsubq/../os.system": f"command: {PAYLOAD}",
    "ｏｓ.system": f"command: {PAYLOAD}",
    "nvsubq.cores.Mаmba": "d_model: 8",  # a Cyrillic letter
    "nvsubq.cores.\u202eabmaM": "d_model: 8",
    "": "{}",
    ".": "{}",
    "a" * 100_000: "{}",
    ".".join(["nvsubq"] * 5_000): "{}",
}

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{p: *{chr(97 + i)}, q: *{chr(97 + i)}}}\n" for i in range(24)
)
INTERPOLATIONS = "x0: [1, 2, 3, 4, 5, 6, 7, 8]\n" + "".join(
    f'x{i + 1}: ["${{x{i}}}", "${{x{i}}}", "${{x{i}}}", "${{x{i}}}", "${{x{i}}}", "${{x{i}}}"]\n'
    for i in range(9)
)

TEXTS = {
    "python tag": f"!!python/object/apply:os.system ['{PAYLOAD}']",
    "python tag inside": f"a: !!python/object/new:subprocess.Popen [[touch, {MARKER}]]",
    "python name": "a: !!python/name:os.system",
    "python module": "a: !!python/module:os",
    "own tag": "a: !nvsubq {}",
    "binary": "a: !!binary aGVsbG8=",
    "alias bomb": BOMB,
    "mapping bomb": MERGES,
    "interpolation bomb": INTERPOLATIONS,
    "recursive alias": "a: &a [*a]",
    "recursive merge": "a: &a\n  <<: *a\n  x: 1",
    "deep list": "a: " + "[" * 20_000 + "]" * 20_000,
    "deep mapping": "a: " + "{b: " * 5_000 + "1" + "}" * 5_000,
    "cycle of two": "a: ${b}\nb: ${a}",
    "cycle of itself": "a: ${a}",
    "cycle through a node": "m: {_target_: nvsubq.cores.Mamba, d_model: '${m}'}",
    "cycle through a parent": "a: {b: '${a}'}",
    "cycle of nested names": "a: ${${a}}",
    "unknown resolver": "a: ${nothing:1}",
    "environment that is not there": "a: ${oc.env:NVSUBQ_NO_SUCH}",
    "resolver that runs code": f'a: ${{eval:"{CODE}"}}',
    "unbalanced interpolation": "a: ${b",
    "deep interpolation": "a: " + "${" * 3_000 + "b" + "}" * 3_000,
    "reference to nothing": "a: ${b.c.d}",
    "tabs": "a:\n\t- b",
    "duplicate key": "a: 1\na: 2",
    "two documents": "a: 1\n---\nb: 2",
    "null byte": "a: \x00",
    "control characters": "a: \x1b[31m\x07",
    "lone surrogate": '"\\ud800": 1\na: !x',
    "list as key": "? [a, b]\n: 1",
    "a word": "word",
    "number": "7",
    "target is a list": "_target_: [nvsubq.cores.Mamba]",
    "target is a number": "_target_: 3",
    "target is null": "_target_: null",
    "target is a node": "_target_: {_target_: nvsubq.cores.Mamba}",
    "target is missing": "_target_: ???",
    "both targets": "_target_: nvsubq.cores.Mamba\n__target__: nvsubq.cores.S5",
    "misspelt target": "_traget_: nvsubq.cores.Mamba",
    "arguments are a mapping": "_target_: nvsubq.cores.Mamba\n_args_: {a: 1}",
    "partial is a word": "_target_: nvsubq.cores.Mamba\n_partial_: maybe",
    "partial without target": "_partial_: true",
    "positional twice": "_target_: nvsubq.cores.Mamba\n_args_: [8]\nd_model: 8",
    "numeric argument name": "_target_: nvsubq.cores.Mamba\n3: 8",
    "dunder argument": "_target_: nvsubq.cores.Mamba\nd_model: 8\n__class__: x",
    "self as argument": "_target_: nvsubq.cores.Mamba\nd_model: 8\nself: x",
    "width is a word": "_target_: nvsubq.cores.Mamba\nd_model: eight",
    "width is a list": "_target_: nvsubq.cores.Mamba\nd_model: [8]",
    "width is null": "_target_: nvsubq.cores.Mamba\nd_model: null",
    "width is true": "_target_: nvsubq.cores.Mamba\nd_model: true",
    "width is not whole": "_target_: nvsubq.cores.Mamba\nd_model: 8.5",
    "width is infinite": "_target_: nvsubq.cores.Mamba\nd_model: .inf",
    "width is nan": "_target_: nvsubq.cores.Mamba\nd_model: .nan",
    "width is negative": "_target_: nvsubq.cores.Mamba\nd_model: -8",
    "width is zero": "_target_: nvsubq.cores.Mamba\nd_model: 0",
    "width is huge": "_target_: nvsubq.cores.Mamba\nd_model: 10000000000",
    "width is beyond 64 bits": "_target_: nvsubq.cores.Mamba\nd_model: 1" + "0" * 40,
    "state is huge": "_target_: nvsubq.cores.S5\nd_model: 8\nd_state: 100000000000",
    "thousands of digits": "_target_: nvsubq.cores.Mamba\nd_model: 1" + "0" * 6_000,
    "million blocks": (
        "_target_: nvsubq.NDBackbone\nspatial_dims: 2\nin_channels: 1\nnum_classes: 2\ndims: [8]\n"
        "depths: [1000000000]\nmixer: {_target_: nvsubq.NDMixer, _partial_: true, "
        "core: {_target_: nvsubq.cores.RGLRU, _partial_: true}}"
    ),
}

OVERRIDES = {
    "target": ["core._target_=os.system"],
    "target of the model": ["model._target_=subprocess.Popen"],
    "target of the trainer": ["trainer._target_=os.system"],
    "target of a logger": ["+logger.x._target_=os.system"],
    "target of a callback": ["+callbacks.x._target_=os.system"],
    "callback that is no callback": ["+callbacks.x._target_=nvsubq.cores.Mamba", "+callbacks.x.d_model=8"],
    "name with a path": ["name=../../escaped", "task.lr=-1"],
    "name with a null byte": ["name='a\x00b'"],
    "name of 10,000 letters": [f"name={'n' * 10_000}"],
    "runs is a device": ["paths.runs=/dev/null"],
    "checkpoint is a folder above": ["ckpt_path=../../../etc/passwd"],
    "checkpoint is a device": ["ckpt_path=/dev/zero"],
    "config folder that is not there": ["--config-dir", "nowhere", "--config-name", "config"],
    "negative epochs": ["epochs=-5"],
    "epochs is a word": ["epochs=many"],
    "epochs is null": ["epochs=null"],
    "no epochs": ["epochs=0"],
    "batch of nothing": ["data.batch_size=0"],
    "workers is negative": ["data.num_workers=-1"],
    "seed is huge": ["seed=99999999999999999999"],
    "seed is a fraction": ["seed=0.5"],
    "rate is nan": ["task.lr=nan"],
    "rate is infinite": ["task.lr=inf"],
    "rate is a word": ["task.lr=fast"],
    "betas out of range": ["task.betas=[1.5,-1]"],
    "dims is empty": ["model.dims=[]", "model.depths=[]"],
    "dims is a word": ["model.dims=wide"],
    "dims are huge": ["model.dims=[1000000000]"],
    "patch is negative": ["model.patch_size=-4"],
    "scan of no name": ["model.mixer.scan=zigzag; rm -rf"],
    "cyclic interpolation": ["model.dims='${model.depths}'", "model.depths='${model.dims}'"],
    "seed is itself": ["seed='${seed}'"],
    "precision of no kind": ["trainer.precision=3"],
    "devices is negative": ["trainer.devices=-7"],
    "clip is a word": ["trainer.gradient_clip_val=much"],
    "threads is huge": ["threads=1000000000000"],
    "checkpoint interval is a word": ["checkpoint.every_s=often"],
    "checkpoint interval is nan": ["checkpoint.every_s=nan"],
    "test with another": ["test_with=worst"],
    "unicode key": ["kérn=1"],
    "override that is no override": ["core=[s5"],
    "data is a list": ["data=[digits,nothing]"],
    "callbacks is a word": ["callbacks=nothing_such"],
}

SMALL = [
    "data=digits",
    "model.dims=[8]",
    "model.depths=[1]",
    "epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "test_with=null",
    "baselines=false",
    "report=false",
    "threads=1",
]


def _text(text: str) -> Call:
    def call() -> Any:
        from nvsubq.lazy_config import from_yaml, instantiate, validate

        config = from_yaml(text)
        validate(config)
        built = instantiate(config)
        return built if built else {}

    return call


def _command(overrides: list[str]) -> Call:
    def call() -> int:
        from nvsubq.cli.main import main

        small = [] if overrides[0].startswith("--") else SMALL
        return main(["train", *small, *overrides])

    return call


def cases(folder: Path) -> list[Case]:
    """All of them; the first one imports what all need."""
    import json

    first = [("command: no loss", functools.partial(_command, ["task.label_smoothing=2"]))]
    nodes = {
        path: f"_target_: {json.dumps(path)}\n{rest if rest != '{}' else ''}"
        for path, rest in TARGETS.items()
    }
    return [
        *first,
        *((f"target: {path[:60]}", functools.partial(_text, text)) for path, text in nodes.items()),
        *((f"text: {name}", functools.partial(_text, text)) for name, text in TEXTS.items()),
        *(
            (f"command: {name}", functools.partial(_command, overrides))
            for name, overrides in OVERRIDES.items()
        ),
    ]
