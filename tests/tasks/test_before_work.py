"""What is told before work begins."""

import pytest
import torch
from fairseq import tasks
from fairseq.criterions import CRITERION_REGISTRY
from omegaconf import OmegaConf, open_dict

from mist_fairseq.tasks import before_work
from mist_fairseq.tasks.before_work import check
from tests.configurations import configuration
from tests.tasks.test_finite import LIMITS, SIZES, TRAINING
from tests.tasks.test_mist_task import write_data
from tests.tasks.test_translation import MODELS
from tests.tasks.test_translation import configuration as baseline

AMP, CPU, BEST = "common.amp", "common.cpu", "checkpoint.best_checkpoint_metric"
MAXIMIZE, MAX_UPDATE = "checkpoint.maximize_best_checkpoint_metric", "optimization.max_update"
NOWHERE = {"checkpoint.restore_file": "nowhere.pt"}


@pytest.fixture(autouse=True)
def fairseq_train(monkeypatch):
    """As if fairseq-train ran."""
    monkeypatch.setattr("sys.argv", ["fairseq-train"])


def changed(cfg, changes):
    """A configuration with other values of some options; hydra takes most of a second for a new one."""
    with open_dict(cfg):
        for name, value in changes.items():
            OmegaConf.update(cfg, name, value)
    return cfg


def training(folder="DATA", /, **changes):
    line = ["--task", "mist", "--arch", "mist_tiny", *SIZES, *LIMITS, *TRAINING]
    return changed(configuration(folder, *line), changes)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == before_work.__name__]


def schedule(total, warmup=0):
    return {MAX_UPDATE: 50, "lr_scheduler.total_num_update": total, "lr_scheduler.warmup_updates": warmup}


def test_trainings_as_they_should_be(caplog):
    check(training(**schedule(50, 10), **{"checkpoint.patience": 3}))
    check(training(**{BEST: "bleu", MAXIMIZE: True}))
    check(training(**{BEST: "mine", "distributed_training.ddp_backend": "legacy_ddp"}))
    check(training(**{BEST: "bleu", "dataset.disable_validation": True}))
    for name in MODELS:
        check(baseline("DATA", name))
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({AMP: True}, "--amp has no effect on a CPU: give --precision bf16"),
        (
            {"common.bf16": True, "common.memory_efficient_bf16": True, "common.tpu": True},
            "^--memory-efficient-bf16 .*: it is for TPUs; --task mist has --precision bf16",
        ),
        ({"common.fp16": True}, "--fp16 trains on a GPU only: give --precision bf16"),
        ({"common.fp16": True, "common.memory_efficient_fp16": True}, "--memory-efficient-fp16 trains on a GPU only"),
        ({"distributed_training.ddp_backend": "slowmo"}, "--ddp-backend slowmo needs fairscale"),
        ({"criterion._name": "cross_entropy"}, "mist_tiny needs --criterion mist_loss, not cross_entropy, fairseq's d"),
        ({"criterion._name": "nat_loss"}, "--arch mist_tiny needs --criterion mist_loss, not nat_loss"),
        ({"bmuf.average_sync": True}, "--average-sync does not go with --optimizer bert_adamw: leave it out"),
        ({"model": None}, "no --arch is given: --task mist takes mist_base, for one"),
        (NOWHERE, "--restore-file nowhere.pt: there is no such file"),
        ({"checkpoint.finetune_from_model": "nowhere.pt"}, "--finetune-from-model nowhere.pt: there is no such file"),
        ({"checkpoint.continue_once": "nowhere.pt"}, "--continue-once nowhere.pt: there is no such file"),
        ({"ema.store_ema": True, "ema.ema_seed_model": "nowhere.pt"}, "--ema-seed-model nowhere.pt: there is no such"),
    ],
)
def test_trainings_that_are_refused(changes, message):
    """By the task, before it looks for its data."""
    with pytest.raises(ValueError, match=message):
        tasks.setup_task(training(**changes).task)


def test_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--fp16 trains on a GPU only"):
        check(training(**{"common.fp16": True}))
    fp16 = {"common.fp16": True, CPU: False}
    check(training(**fp16))
    with pytest.raises(ValueError, match="bert_adamw: give --precision bf16, or --fp16$"):
        check(training(**fp16, **{"common.memory_efficient_fp16": True}))
    amp, bf16 = {AMP: True, CPU: False}, {"task.precision": "bf16"}
    check(training(**amp))
    for both, message in (
        (fp16 | amp, "--fp16 and --amp: give one of them"),
        (fp16 | bf16, "--fp16 and --precision bf16: give one of them"),
        (amp | bf16, "--amp and --precision bf16: give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            check(training(**both))


def test_precision_of_baselines(monkeypatch):
    cfg = changed(baseline("DATA", "mist_translation"), {AMP: True})
    with pytest.raises(ValueError, match="--amp has no effect on a CPU: leave it out, or on a GPU give --fp16"):
        check(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check(cfg)


@pytest.mark.parametrize(
    ("name", "arch", "criterion", "message"),
    [
        ("mist_translation", "transformer", "nat_loss", "nat_loss is for models such as cmlm_transformer, not for"),
        ("mist_translation", "transformer", "mist_loss", "mist_loss is for models of --task mist, not for --arch tra"),
        ("mist_translation", "cmlm_transformer", "nat_loss", "go with --task mist_translation: give --task mist_trans"),
        ("mist_translation_lev", "cmlm_transformer", "cross_entropy", "needs --criterion nat_loss, not cross_entropy"),
        ("mist_translation_lev", "cmlm_transformer", "mist_loss", "needs --criterion nat_loss, not mist_loss"),
        ("mist_translation_lev", "transformer", "nat_loss", "nat_loss is for models such as cmlm_transformer, not for"),
    ],
)
def test_baselines_with_another_part(name, arch, criterion, message):
    cfg = changed(baseline("DATA", name), {"model": {"_name": arch}, "criterion": {"_name": criterion}})
    with pytest.raises(ValueError, match=message):
        check(cfg)


def test_a_users_criterion_is_left_alone(monkeypatch):
    monkeypatch.setitem(CRITERION_REGISTRY, "mine", type("Mine", (), {}))
    check(training(**{"criterion._name": "mine"}))


def test_a_seed_without_a_moving_average(tmp_path):
    torch.save({"model": {}, "extra_state": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="was trained without --store-ema: leave the option out"):
        check(training(**{"ema.store_ema": True, "ema.ema_seed_model": str(tmp_path / "checkpoint.pt")}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint.patience": 2, "dataset.disable_validation": True}, "--patience without effect: --disable-valid"),
        ({"checkpoint.keep_best_checkpoints": 2, "dataset.disable_validation": True}, "--keep-best-checkpoints with"),
        ({BEST: "bleu"}, "worst bleu counts as the best: add --maximize-best"),
        ({MAXIMIZE: True}, "the worst loss counts as the best: leave out --maximize-best"),
        (schedule(60), "before the learning rate is at its end: --total-num-update is 60"),
        (
            schedule(70, 60),
            "ends after --max-update 50, before the learning rate is at its highest: --warmup-updates i",
        ),
    ],
)
def test_one_warning(changes, message, caplog):
    check(training(**changes))
    (warning,) = warnings(caplog)
    assert message in warning


def test_other_commands_and_programs(monkeypatch):
    """fairseq-generate has no criterion and trains nothing; a program may look at a checkpoint's configuration."""
    generating = {**NOWHERE, "common.fp16": True}
    monkeypatch.setattr("sys.argv", ["fairseq-generate"])
    check(training(**generating))
    with pytest.raises(ValueError, match="--amp has no effect: give --precision bf16"):
        check(training(**generating, **{AMP: True}))
    monkeypatch.setattr("sys.argv", ["mine.py"])
    check(training(**NOWHERE))


@pytest.fixture
def begin(tmp_path):
    """Begins the first epoch of a training."""
    write_data(tmp_path)

    def begin(metric, *evaluated, criterion=None, **changes):
        cfg = training(tmp_path, **{BEST: metric, **{f"task.eval_{name}": True for name in evaluated}, **changes})
        task = tasks.setup_task(cfg.task)
        model = task.build_model(cfg.model)
        built = task.build_criterion(cfg.criterion)
        if criterion is not None:
            built.__class__ = criterion
        task.load_dataset("valid")
        state = torch.get_rng_state()
        task.begin_epoch(1, model)
        assert torch.equal(torch.get_rng_state(), state), "training would draw other numbers"

    return begin


@pytest.mark.parametrize(
    ("metric", "evaluated", "changes", "names"),
    [
        ("bleu", [], {}, "accuracy, .*loss, .*; bleu needs --eval-bleu"),
        ("rouge_l", ["bleu"], {}, "accuracy, bleu, .*; rouge_l needs --eval-rouge"),
        ("belu", ["bleu"], {"checkpoint.no_save": True}, "accuracy, bleu, .*loss, "),
        ("mist_accuracy", [], {"criterion.mist_loss_factor": 0.0}, "accuracy, .*loss, "),
    ],
)
def test_a_metric_that_validation_does_not_give(begin, metric, evaluated, changes, names):
    with pytest.raises(ValueError, match=f"--best-checkpoint-metric {metric}: validation gives {names}"):
        begin(metric, *evaluated, **changes)


def test_a_metric_that_it_gives(begin, caplog):
    begin("bleu", "bleu", **{MAXIMIZE: True})
    begin("mist_accuracy", **{MAXIMIZE: True})
    begin("bleu", **{"dataset.disable_validation": True})
    assert not warnings(caplog)


def test_a_users_criterion_may_give_a_metric_later(begin, caplog):
    begin("f1", criterion=type("Mine", (CRITERION_REGISTRY["mist_loss"],), {"__module__": "mine"}))
    assert "--best-checkpoint-metric f1: validation gives accuracy" in "".join(warnings(caplog))


def test_the_check_lets_no_untrained_levenshtein_transformer_outgrow_its_positions(tmp_path):
    words = ("--arch", "levenshtein_transformer", "--noise", "random_delete", "--decoder-learned-pos", "--eval-bleu")
    folder = write_data(tmp_path, [("how " * 100, "why")])
    cfg = changed(baseline(folder, "mist_translation_lev", *words), {BEST: "bleu", MAXIMIZE: True})
    task = tasks.setup_task(cfg.task)
    model, _ = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    with torch.no_grad():  # it inserts 100 words wherever it can and deletes none
        norm = model.decoder.layers[-1].final_layer_norm
        norm.weight.zero_()
        norm.bias.fill_(1.0)
        for embedding, predicted in ((model.decoder.embed_mask_ins, 100), (model.decoder.embed_word_del, 0)):
            embedding.weight.zero_()
            embedding.weight[predicted] = 1.0
    task.load_dataset("valid")
    task.begin_epoch(1, model)
    assert task.sequence_generator.max_iter == 10
