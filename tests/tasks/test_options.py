"""Every option of fairseq's five commands: honoured, without effect, or refused."""

from copy import deepcopy
from dataclasses import fields
from functools import cache

import pytest
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from fairseq.tasks.translation_lev import TranslationLevenshteinConfig

from mist_fairseq.models.nar_generator import AUTOREGRESSIVE_OPTIONS
from mist_fairseq.tasks import options as ours
from tests.tasks.test_mist_task import write_data

PARSERS = {
    "preprocess": options.get_preprocessing_parser,
    "train": options.get_training_parser,
    "validate": options.get_validation_parser,
    "generate": options.get_generation_parser,
    "interactive": options.get_interactive_generation_parser,
}
# With --task mist, for each of these commands in turn, h: honoured; -: without effect and harmless; r: refused by name;
# b: it depends, and is told before work starts (tasks/before_work.py); .: not there.
TABLE = {
    "-----": """
        plasma_path reset_logging suppress_crashes use_plasma_view
    """,
    "---h-": """
        scoring
    """,
    "-b-bb": """
        amp
    """,
    "-bhbb": """
        fp16 memory_efficient_fp16
    """,
    "-rrrr": """
        bf16 memory_efficient_bf16 tpu
    """,
    "-h---": """
        amp_batch_retries fp16_init_scale fp16_no_flatten_grads fp16_scale_tolerance fp16_scale_window min_loss_scale
        on_cpu_convert_precision threshold_loss_scale
        aim_repo aim_run_hash azureml_logging empty_cache_freq log_file lr_scheduler optimizer profile
        tensorboard_logdir wandb_project
    """,
    "-hh--": """
        all_gather_list_size criterion
    """,
    "-hhh-": """
        log_format log_interval no_progress_bar
    """,
    "-hhhh": """
        cpu seed
    """,
    "-r---": """
        amp_init_scale amp_scale_window model_parallel_size quantization_config_path
    """,
    "hhhh-": """
        dataset_impl
    """,
    "hhhhh": """
        help task user_dir
    """,
    "r--rr": """
        bpe tokenizer
    """,
    ".----": """
        distributed_num_procs fast_stat_sync fix_batches_to_gpus fp32_reduce_scatter localsgd_frequency
        no_reshard_after_forward not_fsdp_flatten_parameters pipeline_balance pipeline_checkpoint pipeline_chunks
        pipeline_decoder_balance pipeline_decoder_devices pipeline_devices pipeline_encoder_balance
        pipeline_encoder_devices required_seq_len_multiple skip_invalid_size_inputs_valid_test slowmo_base_algorithm
        slowmo_momentum
    """,
    ".b---": """
        ddp_backend
    """,
    ".r---": """
        cpu_offload pipeline_model_parallel use_sharded_state zero_sharding
    """,
    ".h---": """
        batch_size_valid broadcast_buffers bucket_cap_mb combine_valid_subsets curriculum ddp_comm_hook
        disable_validation find_unused_parameters fixed_validation_seed gradient_as_bucket_view grouped_shuffling
        heartbeat_timeout ignore_unused_valid_subsets max_tokens_valid max_valid_steps train_subset
        update_epoch_batch_itr update_ordered_indices_seed validate_after_updates validate_interval
        validate_interval_updates
    """,
    ".hh--": """
        device_id distributed_backend distributed_init_method distributed_no_spawn distributed_port nprocs_per_node
    """,
    ".hhh-": """
        data_buffer_size distributed_rank distributed_world_size num_workers required_batch_size_multiple
    """,
    ".hhhh": """
        batch_size max_tokens
    """,
    ".hhr-": """
        valid_subset
    """,
    ".rrh-": """
        gen_subset
    """,
    ".rrhr": """
        num_shards shard_id
    """,
    "..---": """
        post_process
    """,
    "..-h-": """
        quiet
    """,
    "..hhh": """
        model_overrides path
    """,
    "..rhr": """
        results_path
    """,
    ".r.rr": """
        checkpoint_shard_count
    """,
    ".b.--": """
        best_checkpoint_metric maximize_best_checkpoint_metric patience restore_file
    """,
    ".h.--": """
        continue_once finetune_from_model keep_best_checkpoints keep_interval_updates keep_interval_updates_pattern
        keep_last_epochs load_checkpoint_on_all_dp_ranks no_epoch_checkpoints no_last_checkpoints no_save
        no_save_optimizer_state optimizer_overrides reset_dataloader reset_lr_scheduler reset_meters reset_optimizer
        save_dir save_interval save_interval_updates
    """,
    ".h.hh": """
        checkpoint_suffix
    """,
    ".r.--": """
        write_checkpoints_asynchronously
    """,
    "...--": """
        beam no_beamable_mm no_early_stop no_seed_provided
    """,
    "...h-": """
        print_step retain_iter_history sacrebleu
    """,
    "...hh": """
        nbest
    """,
    "...rr": """
        beam_mt constraints decoding_format diverse_beam_groups diverse_beam_strength diversity_rate eos_token
        iter_decode_eos_penalty iter_decode_force_max_iter iter_decode_max_iter iter_decode_with_beam
        iter_decode_with_external_reranker lenpen lenpen_mt lm_path lm_weight match_source_len max_len_a max_len_a_mt
        max_len_b max_len_b_mt min_len no_repeat_ngram_size prefix_size print_alignment replace_unk retain_dropout
        retain_dropout_modules sampling sampling_topk sampling_topp score_reference temperature unkpen unnormalized
    """,
    "....h": """
        buffer_size input
    """,
    ".-...": """
        debug_param_names
    """,
    ".h...": """
        arch clip_norm ema_decay ema_fp32 ema_seed_model ema_start_update ema_update_freq lr max_epoch max_update
        skip_remainder_batch stop_min_lr stop_time_hours store_ema update_freq use_bmuf
    """,
    ".r...": """
        sentence_avg
    """,
    "h....": """
        destdir dict_only joined_dictionary only_source source_lang srcdict target_lang testpref tgtdict trainpref
        validpref workers
    """,
    "r....": """
        align_suffix alignfile nwordssrc nwordstgt padding_factor thresholdsrc thresholdtgt
    """,
}
# What fairseq's translation tasks add, with ours.
TRANSLATION = {
    ".hhhh": "data source_lang target_lang left_pad_source left_pad_target max_source_positions max_target_positions",
    ".hh..": "train_subset dataset_impl noise eval_bleu eval_bleu_args eval_bleu_print_samples",
    ".----": "truncate_source num_batch_buckets required_seq_len_multiple eval_bleu_remove_bpe",
    ".rrrr": "load_alignments",
    ".rr--": "eval_bleu_detok eval_bleu_detok_args eval_tokenized_bleu",
    ".r---": "upsample_primary",
}
AUTOREGRESSIVE = {name for defaults in AUTOREGRESSIVE_OPTIONS.values() for name in defaults}
# fairseq reads this one before there is a task: patches/workers.py.
ELSEWHERE = {("train", "write_checkpoints_asynchronously")}


def coded(table, command, codes) -> set[str]:
    place = list(PARSERS).index(command)
    return {name for code, names in table.items() if code[place] in codes for name in names.split()}


@pytest.mark.parametrize("command", PARSERS)
def test_each_option_is_in_the_table(command):
    there = {action.dest for action in PARSERS[command](default_task="mist")._actions}
    known = coded(TABLE, command, "h-rb")
    assert there - known == set(), "new in fairseq: is it honoured?"
    assert known - there == set(), "gone from fairseq"
    theirs = {field.name for field in fields(TranslationLevenshteinConfig)} - {"_name"}
    assert theirs == {name for names in TRANSLATION.values() for name in names.split()}


@pytest.mark.parametrize("command", PARSERS)
def test_the_table_knows_what_is_refused(command):
    refused = {
        name
        for row in ours.REFUSED
        if command in row.commands.split() and row.task in ("", "mist")
        for name in row.names.split()
    }
    refused |= AUTOREGRESSIVE if command in ("generate", "interactive") else set()
    refused |= {name for where, name in ELSEWHERE if where == command}
    both = coded(TABLE, command, "r") | coded(TRANSLATION, command, "r")
    assert refused - {"output"} == both


@cache
def _whole(command: str, *words: str):
    parser = PARSERS[command](default_task="mist")
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, ["DATA", *words]))


def set_up(monkeypatch, folder, command, *words, task="mist", **given):
    """The task and the configuration of a command line; a checkpoint's in fairseq-validate."""
    monkeypatch.setattr("sys.argv", [f"/bin/fairseq-{command}"])
    arch = ("--arch", "mist_tiny" if task == "mist" else "transformer") if command in ("train", "validate") else ()
    words = ("--task", task, *arch, *words)
    whole = deepcopy(_whole("train" if command == "validate" else command, *words))
    overwrite_args_by_name(whole, {"data": str(folder), **given})
    return tasks.setup_task(whole.task, from_checkpoint=command == "validate"), whole


TRANSLATED = {name for names in TRANSLATION.values() for name in names.split()}
CASES = [
    (command, row.task or ("mist_translation" if name in TRANSLATED else "mist"), name)
    for row in ours.REFUSED
    for command in row.commands.split()
    for name in row.names.split()
    if command != "preprocess"
]


@pytest.mark.parametrize(("command", "task", "name"), CASES)
def test_what_is_refused_is_refused_by_name(tmp_path, monkeypatch, command, task, name):
    values = {"bpe": "sentencepiece", "tokenizer": "moses"}
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} does not work with fairseq-{command}: "):
        set_up(monkeypatch, write_data(tmp_path), command, task=task, **{name: values.get(name, 7)})


def test_a_default_is_not_given(tmp_path, monkeypatch):
    folder = write_data(tmp_path)
    for command in ("train", "validate", "generate", "interactive"):
        set_up(monkeypatch, folder, command, *(["--criterion", "mist_loss"] if command == "train" else []))
    # Other programs may do what they want, and load whatever checkpoint.
    monkeypatch.setattr("sys.argv", ["generate.py"])
    assert ours.running() is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["--nwordssrc", "9"], "nwordssrc"),
        (["--bpe", "gpt2"], "bpe"),
        (["--alignfile", "x"], "alignfile"),
        (["--dataset-impl", "lazy"], "dataset-impl lazy"),
    ],
)
def test_preprocessing_refuses_by_name(tmp_path, monkeypatch, given, name):
    task, folder = tasks.get_task("mist"), write_data(tmp_path)
    line = ["-s", "src", "-t", "tgt", "--task", "mist", "--srcdict", str(folder / "dict.src.txt")]
    monkeypatch.setattr("sys.argv", ["/lib/fairseq_cli/preprocess.py", *line])
    task.load_dictionary(line[-1])
    monkeypatch.setattr("sys.argv", ["/lib/fairseq_cli/preprocess.py", *line, *given])
    with pytest.raises(ValueError, match=f"--{name} "):
        task.load_dictionary(line[-1])


def test_shards_and_sacrebleu_are_honoured(tmp_path, monkeypatch):
    folder = write_data(tmp_path)
    _, whole = set_up(monkeypatch, folder, "generate", num_shards=3, shard_id=2, sacrebleu=True)
    workers = whole.distributed_training
    assert (workers.distributed_world_size, workers.distributed_rank) == (3, 2)
    assert whole.scoring._name == "sacrebleu" and whole.scoring.sacrebleu_tokenizer == "13a"
    _, whole = set_up(monkeypatch, folder, "generate")
    assert whole.distributed_training.distributed_world_size == 1 and whole.scoring._name == "bleu"
    with pytest.raises(ValueError, match="--sacrebleu and --scoring rouge"):
        set_up(monkeypatch, folder, "generate", "--scoring", "rouge", "--sacrebleu")
    for given, message in (
        ({"num_shards": 2, "distributed_world_size": 2}, "--num-shards and --distributed-world-size"),
        ({"num_shards": 2, "output": "x"}, "--output is for one process"),
        ({"model_overrides": "{'decoding': 'mist'}"}, "--model-overrides has 'decoding'.* give --decoding"),
    ):
        with pytest.raises(ValueError, match=message):
            set_up(monkeypatch, folder, "generate", **given)


def test_references_are_needed_by_name(tmp_path, monkeypatch):
    folder = write_data(tmp_path)
    for name in ("valid.src-tgt.tgt.bin", "valid.src-tgt.tgt.idx"):
        (folder / name).unlink()
    set_up(monkeypatch, folder, "generate", task="mist_translation")[0].load_dataset("valid")
    for name, option in (("score_reference", "--score-reference"), ("prefix_size", "--prefix-size")):
        task, _ = set_up(monkeypatch, folder, "generate", task="mist_translation", **{name: 1})
        with pytest.raises(ValueError, match=f"has no targets, which {option} needs"):
            task.load_dataset("valid")
