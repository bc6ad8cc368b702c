"""Every mistake of a user: one line `field: got value, allowed values`, status 2, no compile."""

import json
import re
import shutil

import pytest

from driftar_jax.evaluation import judges, networks

DRIFT = "--config=configs/drift_mar_small.py:tiny"
OWN = "--config=configs/mar_small.py:tiny"
JUDGE = "--config=configs/classifier.py:tiny"
LINE = re.compile(r"driftar_jax: [^:\n]+: got [^\n]+, allowed [^\n]+\n")


def _refused(done, field, *words):
    """The one line of a refusal, which names `field` and holds `words`."""
    assert done.status == 2
    assert LINE.fullmatch(done.stderr), done.stderr
    assert done.stdout == "" and done.compiled == 0
    assert done.stderr.startswith(f"driftar_jax: {field}: got "), done.stderr
    for word in words:
        assert str(word) in done.stderr
    return done.stderr


@pytest.fixture
def train(call, tmp_path):
    """Calls `train` with a new workdir, and sees that a refusal leaves none behind."""

    def run(*words):
        done = call("train", *words, f"--workdir={tmp_path / 'run'}")
        assert not (tmp_path / "run").exists()
        return done

    return run


@pytest.mark.parametrize(
    ("config", "override", "field", "word"),
    [
        (DRIFT, "host.widht=3", "config field", "did you mean 'host.width'?"),
        (DRIFT, "hots.width=3", "config field", "did you mean 'host.width'?"),
        (DRIFT, "optim.lr=abc", "optim.lr", "a number above 0"),
        (DRIFT, "optim.lr=nan", "optim.lr", "a number above 0"),
        (DRIFT, "optim.lr=inf", "optim.lr", "a number above 0"),
        (DRIFT, "optim.lr=0", "optim.lr", "a number above 0"),
        (DRIFT, "optim.b2=1", "optim.b2", "to below 1"),
        (DRIFT, "train.steps=1.5", "train.steps", "a whole number of at least 1"),
        (DRIFT, "train.steps=0", "train.steps", "a whole number of at least 1"),
        (DRIFT, "data.flip=maybe", "data.flip", "true | false"),
        (DRIFT, "seed=-1", "seed", "0 to 9223372036854775807"),
        (DRIFT, "host=3", "config field", "did you mean"),
        (DRIFT, "host.dtype=float16", "host.dtype", "float32 | bfloat16"),
        (DRIFT, "drift.draws=1", "drift.draws", "at least 2"),
        (DRIFT, "loss.entropy_loss=both", "loss.entropy_loss", "match | maximize | none"),
        (DRIFT, "prior.scale=E", "prior.scale", "entropy | constant | shuffled | learned"),
        (DRIFT, "data.patch_size=3", "data.patch_size", "a divisor of data.image_size 8"),
        (DRIFT, "host.num_heads=3", "host.num_heads", "a divisor of host.width 16"),
        (DRIFT, "draft.num_heads=3", "draft.num_heads", "a divisor of draft.width 16"),
        (DRIFT, "optim.accumulate=3", "optim.accumulate", "a divisor of train.batch_size 8"),
        (DRIFT, "sample.ar_steps=5", "sample.ar_steps", "1 to 4"),
        (DRIFT, "mask.tokens_per_image=5", "mask.tokens_per_image", "0 to 4"),
        (DRIFT, "mesh.fsdp=3", "mesh", "the device count 1"),
        (DRIFT, "data.name=digit8", "data.name", "nearest: digits8"),
        (DRIFT, "data.name=folder:/nowhere", "data.name", "folder:PATH"),
        (DRIFT, "train.batch_size=5000", "train.batch_size", "1 to 1498"),
        (DRIFT, "optim.freeze=hots.*", "optim.freeze", "globs that name parameters"),
        (DRIFT, "optim.freeze=decoder.*", "optim.freeze", "leave something of decoder to learn"),
        (DRIFT, "init_from=/nowhere", "init_from", "a checkpoint of a host"),
        (OWN, "sample.nfe=1001", "sample.nfe", "1 to 1000"),
        (OWN, "sample.nfe=952", "nfe", "1 to 951 (spacing trimmed)"),
        (OWN, "drift.draws=3", "config field", "drift"),
        (JUDGE, "classifier.width=0", "classifier.width", "at least 1"),
    ],
)
def test_a_bad_setting_is_named(train, config, override, field, word):
    trimmed = () if config == JUDGE else ("--config.sample.spacing=trimmed",)
    _refused(train(config, *trimmed, f"--config.{override}"), field, word)


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        (["--config=configs/nowhere.py:tiny"], "config", "an existing file"),
        (["--config=configs/mar_small.py:huge"], "config size", "digits8 | fashion28"),
        ([DRIFT, "--wrokdir=a"], "flag", "did you mean 'workdir'?"),
        ([DRIFT, "stray"], "argument", "only --flags"),
        ([], "config", "--config=VALUE"),
    ],
)
def test_a_bad_command_line_is_named(train, words, field, allowed):
    _refused(train(*words), field, allowed)


def test_a_config_file_that_does_not_load_is_named(train, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    done = train(f"--config={tmp_path / 'broken.py'}")
    _refused(done, "config", "broken.py", "SyntaxError")


def test_a_missing_flag_is_named(call, tmp_path):
    _refused(call("train", DRIFT), "workdir", "--workdir=VALUE")
    _refused(call("train", DRIFT, "--workdir"), "workdir", "--workdir=VALUE")
    _refused(call("sample", f"--workdir={tmp_path}"), "out", "--out=VALUE")
    _refused(call("evaluate", "--workdir=a", "--baseline=b", "--judge=c"), "out", "--out=VALUE")


def test_a_workdir_that_cannot_be_used_is_named(call, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    below, full = file / "run", tmp_path
    _refused(call("train", DRIFT, f"--workdir={below}"), "workdir", below, "written")
    _refused(call("train", DRIFT, f"--workdir={full}"), "workdir", "a new or empty folder")
    _refused(call("train", DRIFT, f"--workdir={file}"), "workdir", "a new or empty folder")
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def test_a_workdir_of_another_config_is_named(call, workdirs):
    other = call("train", DRIFT, f"--workdir={workdirs.own}")
    _refused(other, "draft.depth", "another config")
    words = [DRIFT, f"--config.init_from={workdirs.own}", f"--workdir={workdirs.drift}"]
    changed = call("train", *words, "--config.drift.width=17")
    _refused(changed, "drift.width", "got 17", "allowed 16")


def test_a_host_of_other_sizes_is_named(train, workdirs):
    words = [DRIFT, "--config.host.width=18", f"--config.init_from={workdirs.own}"]
    _refused(train(*words), "init_from", "the same sizes")
    _refused(train(DRIFT, f"--config.init_from={workdirs.judge}"), "init_from", "holds a host")


@pytest.fixture
def sample(call, tmp_path):
    """Calls `sample` with a new folder, and sees that a refusal leaves none behind."""

    def run(*words):
        done = call("sample", *words, f"--out={tmp_path / 'images'}")
        assert not (tmp_path / "images").exists()
        return done

    return run


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        (["--num=abc"], "num", "a whole number"),
        (["--num=0"], "num", "at least 1"),
        (["--batch_size=0"], "batch_size", "at least 1"),
        (["--seed=-1"], "seed", "0 to 9223372036854775807"),
        (["--labels=10"], "labels", "-1 to 9"),
        (["--labels=0,-2"], "labels", "got '-2'"),
        (["--labels=eleven"], "labels", "got 'eleven'"),
        (["--ar_steps=5"], "ar_steps", "1 to 4"),
        (["--ar_steps=0"], "ar_steps", "1 to 4"),
        (["--method=own"], "method", "drift | mean"),
        (["--nfe=0"], "nfe", "this model does not read it"),
        (["--spacing=even"], "spacing", "this model does not read it"),
        (["--guidance=-1"], "guidance", "a number from 0"),
        (["--guidance=nan"], "guidance", "a number from 0"),
        (["--temperature=0"], "temperature", "above 0"),
        (["--temperature=inf"], "temperature", "above 0"),
        (["--negative=@words.txt"], "negative", "allowed text"),
        (["--prompt=@words.txt"], "prompt", "--prompts=words.txt"),
        (["--labels=\udcff"], "labels", "text in UTF-8"),
    ],
)
def test_a_bad_sampling_setting_is_named(sample, workdirs, words, field, allowed):
    _refused(sample(f"--workdir={workdirs.drift}", *words), field, allowed)


def test_head_steps_of_the_own_head_are_bounded(sample, workdirs):
    _refused(sample(f"--workdir={workdirs.own}", "--nfe=0"), "nfe", "1 to 951 (spacing trimmed)")


def test_a_method_of_another_checkpoint_is_named(sample, workdirs):
    _refused(sample(f"--workdir={workdirs.own}", "--method=drift"), "method", "allowed own")


def test_what_holds_no_checkpoint_is_named(sample, workdirs, tmp_path):
    _refused(sample("--workdir=/nowhere"), "workdir", "/nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("nothing")
    _refused(sample(f"--workdir={tmp_path / 'foreign'}"), "workdir", "train or convert")
    _refused(sample(f"--workdir={workdirs.judge}"), "workdir", "'classifier'", "host | drift")
    empty = tmp_path / "started"
    (empty / "checkpoints").mkdir(parents=True)
    shutil.copy(f"{workdirs.drift}/config.json", empty)
    _refused(sample(f"--workdir={empty}"), "workdir", "a finished checkpoint")
    shutil.rmtree(empty / "checkpoints")
    _refused(sample(f"--workdir={empty}"), "workdir", "checkpoints/")


def test_a_checkpoint_that_does_not_fit_its_config_is_named(sample, workdirs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdirs.drift, copy)
    config = json.loads((copy / "config.json").read_text())
    config["drift"]["width"] = 24
    (copy / "config.json").write_text(json.dumps(config))
    _refused(sample(f"--workdir={copy}"), "workdir", "got drift.width 24", "allowed 16 as step")
    (copy / "config.json").write_text("{")
    _refused(sample(f"--workdir={copy}"), "workdir", "config.json")


def test_too_few_tokens_for_quarters_are_named(call, workdirs, tmp_path):
    words = [f"--workdir={workdirs.drift}", f"--baseline={workdirs.own}", f"--out={tmp_path / 'x'}"]
    done = call("deviation", *words, "--contexts=1", "--tokens=3", "--draws=4")
    _refused(done, "contexts", "got 1", "at least 4 tokens")
    assert not (tmp_path / "x").exists()


def test_a_folder_with_files_is_not_written_over(call, workdirs, tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    done = call("sample", f"--workdir={workdirs.drift}", f"--out={tmp_path}")
    _refused(done, "out", "a new or empty folder")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.png"]


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        ({"judge": "own"}, "judge", "task classifier, not host"),
        ({"workdir": "own"}, "workdir", "task drift, not host"),
        ({"baseline": "drift"}, "baseline", "task host, not drift"),
        ({"num": 8}, "num", "more than 8"),
        ({"seeds": 0}, "seeds", "at least 1"),
        ({"batch_sizes": "4,x"}, "batch_sizes", "whole numbers"),
        ({"inception": "own"}, "num", "more than 2048"),
        ({"inception": "own", "num": 3000}, "inception", "convert --family=inception"),
        ({"reference": "own"}, "reference", "a .npz of mu and sigma"),
        ({"guidance": "1.5,much"}, "guidance", "numbers from 0"),
        ({"guidance": "-2"}, "guidance", "a number from 0"),
        ({"metrics": "recall"}, "metrics", "kid | precision_recall | inception_score | nearest"),
    ],
)
def test_a_bad_comparison_is_named(call, workdirs, tmp_path, change, field, allowed):
    words = {
        "workdir": workdirs.drift,
        "baseline": workdirs.own,
        "judge": workdirs.judge,
        "out": tmp_path / "report",
        "num": 16,
    }
    words |= {name: getattr(workdirs, str(value), value) for name, value in change.items()}
    done = call("evaluate", *(f"--{name}={value}" for name, value in words.items()))
    _refused(done, field, allowed)
    assert not (tmp_path / "report").exists()


def test_a_set_too_small_for_its_features_is_named(call, workdirs, tmp_path, monkeypatch):
    """Half of the real images must be more than the features; the network itself is not run."""
    wide = networks.Network("inception", 2048, 1008, 1, apply=None, params=None)
    monkeypatch.setattr(judges, "open_inception", lambda workdir: wide)
    done = call(
        "evaluate",
        f"--workdir={workdirs.drift}",
        f"--baseline={workdirs.own}",
        f"--judge={workdirs.judge}",
        "--inception=converted",
        "--num=3000",
        f"--out={tmp_path / 'report'}",
    )
    _refused(done, "inception", "more than 4097 images")
    assert not (tmp_path / "report").exists()


def test_a_report_is_not_written_over(call, workdirs, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    flags = [f"--workdir={workdirs.drift}", f"--baseline={workdirs.own}", "--num=16"]
    done = call("evaluate", *flags, f"--judge={workdirs.judge}", f"--out={tmp_path}")
    _refused(done, "out", "--overwrite")
    assert (tmp_path / "report.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("program", "words", "field"),
    [
        ("train", [DRIFT, "--config.host.widht=3", "--workdir=nowhere"], "config field"),
        ("sample", ["--workdir=nowhere", "--out=nowhere_out"], "workdir"),
    ],
)
def test_a_process_of_its_own_says_the_same(python, program, words, field):
    done = python("-m", f"driftar_jax.{program}", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert LINE.fullmatch(done.stderr), done.stderr
    assert done.stderr.startswith(f"driftar_jax: {field}: got ")
