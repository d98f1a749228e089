"""Pushing to a Hub that runs on the loopback interface, and loading what was pushed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import huggingface_hub.lfs
import pytest
from huggingface_hub import snapshot_download

from tests.publishing.hub_server import Commit, HubServer
from tests.publishing.pushable import (
    PICKLED,
    SECRET,
    SHARDS,
    TOKEN,
    write_adapter,
    write_json,
    write_weights,
)
from xgen_mm import PushError
from xgen_mm.publishing.push import push_checkpoint

REPO = "someone/model"
# The repository's own files; everything else that is there was pushed.
INITIAL = {".gitattributes"}
PUSHED = {
    *SHARDS,
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "images/curve.png",
}

# Run where `import xgen_mm` fails: fetches a private repository, loads it by its id and answers one question.
CLEAN_PROCESS = """
import sys
sys.modules["xgen_mm"] = None
import json
from pathlib import Path
from huggingface_hub import snapshot_download
from transformers import AutoModelForImageTextToText, AutoProcessor

repo_id, messages = sys.argv[1], json.loads(sys.argv[2])
fetched = Path(snapshot_download(repo_id))
model = AutoModelForImageTextToText.from_pretrained(repo_id, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(json.dumps({
    "files": sorted(str(path.relative_to(fetched)) for path in fetched.rglob("*") if path.is_file()),
    "homes": [type(part).__module__.split(".")[0] for part in (model, processor)],
    "ids": ids.tolist(),
    "text": processor.decode(ids, skip_special_tokens=True),
}))
"""


def files_on(hub: HubServer, branch: str = "main") -> set[str]:
    return set(hub.repositories[REPO].files(branch)) - INITIAL


def test_pushed_checkpoint_answers_the_same_without_the_package(hub: HubServer, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import xgen_mm
    from xgen_mm.cli.demo_script import SCRIPT, is_right, load_picture

    model = AutoModelForImageTextToText.from_pretrained(xgen_mm.tiny_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(xgen_mm.tiny_checkpoint())
    # Several shards, as large models have them.
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="4MB")
    processor.save_pretrained(tmp_path / "checkpoint")
    report = push_checkpoint(tmp_path / "checkpoint", REPO)
    assert report.left_out == {}

    picture = tmp_path / "picture.png"
    load_picture(SCRIPT[0].new_numbers[0]).save(picture)
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": SCRIPT[0].question}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()

    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-c", CLEAN_PROCESS, REPO, json.dumps(messages)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    assert set(answer["files"]) - INITIAL == set(report.files)
    assert sum(name.endswith(".safetensors") for name in report.files) > 1
    assert answer["homes"] == ["transformers_modules", "transformers_modules"]
    assert answer["ids"] == ids
    assert is_right(answer["text"], expected=SCRIPT[0].expected)


def test_pushed_files_are_those_that_belong_to_the_checkpoint(hub: HubServer, directory: Path) -> None:
    report = push_checkpoint(directory, REPO)
    assert files_on(hub) == set(report.files) == PUSHED
    for name, size in report.files.items():
        assert hub.repositories[REPO].files()[name] == (directory / name).read_bytes()
        assert size == (directory / name).stat().st_size
    assert report.left_out == {
        ".env": "hidden",
        "checkpoint-7/": "checkpoint of a training run; push it by itself",
        "custom.py": "code that this package did not write",
        "global_step7/": "state of the training run",
        "images/not_shown.png": "not part of the checkpoint",
        "optimizer.pt": "state of the training run, a pickle",
        "train.log": "log",
        "trainer_state.json": "state of the training run",
        "training_args.bin": "state of the training run, a pickle",
    }


def test_push_sends_no_secret_no_local_path_and_no_training_state(hub: HubServer, directory: Path) -> None:
    push_checkpoint(directory, REPO)
    received = hub.received
    assert (directory / "config.json").read_bytes() in received
    for text in (SECRET.encode(), PICKLED, TOKEN.encode(), str(directory).encode(), b"/home/someone/run"):
        assert text not in received


def test_new_repository_is_private_and_needs_the_token(
    hub: HubServer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = push_checkpoint(directory, REPO)
    assert report.private
    assert hub.repositories[REPO].private
    fetched = snapshot_download(REPO, cache_dir=tmp_path / "cache")
    assert {str(path.relative_to(fetched)) for path in Path(fetched).rglob("*.*") if path.is_file()} >= PUSHED
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match=r"404|401"):
        snapshot_download(REPO, cache_dir=tmp_path / "other_cache")


def test_new_repository_is_public_if_asked_for(hub: HubServer, directory: Path) -> None:
    assert not push_checkpoint(directory, REPO, private=False).private
    assert not hub.repositories[REPO].private


def test_existing_public_repository_is_refused_by_default(hub: HubServer, directory: Path) -> None:
    hub.create(REPO, private=False)
    with pytest.raises(PushError, match=r"is public, nothing was sent; pass `private=False` \(`--public`\)"):
        push_checkpoint(directory, REPO)
    assert files_on(hub) == set()
    assert not hub.paths("PUT")
    push_checkpoint(directory, REPO, private=False)
    assert files_on(hub) == PUSHED


def test_existing_private_repository_stays_private(hub: HubServer, directory: Path) -> None:
    hub.create(REPO, private=True)
    assert push_checkpoint(directory, REPO, private=False).private
    assert hub.repositories[REPO].private


def test_branch_gets_the_files_and_main_stays(hub: HubServer, directory: Path) -> None:
    repository = hub.create(REPO, private=True)
    repository.add(Commit(files={}, large=set(), title="start"), branch="next/one")
    report = push_checkpoint(directory, REPO, revision="next/one", commit_message="Second try")
    assert (files_on(hub), files_on(hub, "next/one")) == (set(), PUSHED)
    assert report.commit == repository.branches["next/one"]
    assert repository.commits[report.commit].title == "Second try"


def test_pull_request_leaves_main_alone_and_needs_no_right_to_write(hub: HubServer, directory: Path) -> None:
    hub.create("other/model", private=False)
    report = push_checkpoint(directory, "other/model", private=False, create_pr=True)
    assert report.pull_request == f"{hub.url}/other/model/discussions/1"
    assert set(hub.repositories["other/model"].files("refs/pr/1")) - INITIAL == PUSHED
    assert set(hub.repositories["other/model"].files()) == INITIAL
    assert not hub.paths("POST", "repos/create")


def test_dry_run_sends_no_request_and_needs_no_token(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    report = push_checkpoint(directory, REPO, dry_run=True)
    assert set(report.files) == PUSHED
    assert report.dry_run
    assert report.commit is None
    assert hub.requests == []


def test_second_push_of_the_same_files_changes_nothing(hub: HubServer, directory: Path) -> None:
    push_checkpoint(directory, REPO)
    num_commits, num_puts = len(hub.repositories[REPO].commits), len(hub.paths("PUT"))
    assert push_checkpoint(directory, REPO).commit is None
    assert len(hub.repositories[REPO].commits) == num_commits
    assert len(hub.paths("PUT")) == num_puts


def test_single_weight_file_that_shards_replace_is_removed(hub: HubServer, directory: Path) -> None:
    old = dict.fromkeys(("model.safetensors", "model.fp16.safetensors", "kept.txt"), b"old")
    hub.create(REPO, private=True, files=old)
    assert push_checkpoint(directory, REPO).removed == ["model.safetensors"]
    assert files_on(hub) == PUSHED | {"model.fp16.safetensors", "kept.txt"}


def test_shards_that_a_single_weight_file_replaces_are_removed(
    hub: HubServer, directory: Path, tmp_path: Path
) -> None:
    push_checkpoint(directory, REPO)
    write_weights(tmp_path / "single" / "model.safetensors")
    write_json(tmp_path / "single" / "config.json", {})
    assert set(push_checkpoint(tmp_path / "single", REPO).removed) == {*SHARDS, "model.safetensors.index.json"}
    assert files_on(hub) == PUSHED - {*SHARDS, "model.safetensors.index.json"} | {"model.safetensors"}


def test_processor_alone_is_pushed_beside_the_weights_that_are_there(hub: HubServer, tmp_path: Path) -> None:
    hub.create(REPO, private=True, files={"model.safetensors": b"weights"})
    write_json(tmp_path / "processor" / "processor_config.json", {"processor_class": "XGenMMProcessor"})
    (tmp_path / "processor" / "chat_template.jinja").write_text("Q:\\nHow?\\nA:")
    report = push_checkpoint(tmp_path / "processor", REPO)
    assert (report.kind, report.removed) == ("processor", [])
    assert files_on(hub) == {"model.safetensors", "processor_config.json", "chat_template.jinja"}


def test_adapter_is_pushed_with_its_weights(hub: HubServer, tmp_path: Path) -> None:
    report = push_checkpoint(write_adapter(tmp_path / "adapter", base="someone/base"), REPO)
    assert report.kind == "adapter"
    assert files_on(hub) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("base", ["{here}/base", "../base", "base", r"C:\models\base", "~/base"])
def test_adapter_of_a_local_base_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", base=base.format(here=tmp_path))
    with pytest.raises(PushError, match=r"adapter_config.json: `base_model_name_or_path`.*write the Hub id"):
        push_checkpoint(adapter, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("status", [pytest.param(None, id="broken-off"), 500, 403])
def test_upload_that_fails_half_way_continues_without_sending_files_again(
    hub: HubServer, directory: Path, status: int | None
) -> None:
    hub.fail("PUT", "/storage/", status=status, skip=1, times=100)
    with pytest.raises(
        PushError, match=rf"1 of 2 weight files are on the Hub \({SHARDS[0]}\).* same command continues"
    ):
        push_checkpoint(directory, REPO)
    assert files_on(hub) == set()
    hub.recover()
    before = len(hub.paths("PUT"))
    push_checkpoint(directory, REPO)
    assert files_on(hub) == PUSHED
    # The second shard and the picture.
    assert len(hub.paths("PUT")) - before == 2


@pytest.mark.parametrize("status", [pytest.param(None, id="broken-off"), 503])
@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        pytest.param("POST", "repos/create", id="create"),
        pytest.param("GET", "revision/main", id="state"),
        pytest.param("POST", "validate-yaml", id="card"),
        pytest.param("POST", "preupload", id="preupload"),
        pytest.param("POST", "objects/batch", id="batch"),
        pytest.param("PUT", "storage", id="transfer"),
        pytest.param("POST", "commit", id="commit"),
    ],
)
def test_passing_failure_is_tried_again(
    hub: HubServer, directory: Path, method: str, pattern: str, status: int | None
) -> None:
    hub.fail(method, pattern, status=status)
    push_checkpoint(directory, REPO)
    assert files_on(hub) == PUSHED


def test_commit_whose_answer_was_lost_is_made_once(hub: HubServer, directory: Path) -> None:
    hub.create(REPO, private=True, files={"model.safetensors": b"old"})
    hub.fail("POST", "commit", status=None, is_done_first=True)
    report = push_checkpoint(directory, REPO)
    assert files_on(hub) == PUSHED
    assert len(hub.repositories[REPO].commits) == 2
    assert report.commit == hub.repositories[REPO].branches["main"]


def test_large_files_are_hashed_once_even_if_the_commit_is_tried_again(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    hash_file = huggingface_hub.lfs.sha_fileobj

    def hash_and_note(file: BinaryIO) -> bytes:
        hashed.append(Path(file.name).name)
        return hash_file(file)

    monkeypatch.setattr("huggingface_hub.lfs.sha_fileobj", hash_and_note)
    hub.fail("POST", "commit", status=503, times=2)
    push_checkpoint(directory, REPO)
    assert sorted(hashed) == ["curve.png", *SHARDS]


def test_commit_without_an_answer_leaves_no_wrong_promise(hub: HubServer, directory: Path) -> None:
    hub.fail("POST", "commit", status=None, times=100)
    with pytest.raises(PushError, match=r"2 of 2 weight files are on the Hub, the commit may have been made or not"):
        push_checkpoint(directory, REPO)


def test_pull_request_is_not_opened_twice(hub: HubServer, directory: Path) -> None:
    hub.create(REPO, private=True)
    hub.fail("POST", "commit", status=None, is_done_first=True)
    with pytest.raises(PushError, match=r"broke off.*look at .*/someone/model/discussions whether"):
        push_checkpoint(directory, REPO, create_pr=True)
    assert set(hub.repositories[REPO].branches) == {"main", "refs/pr/1"}


def test_commit_of_somebody_else_meanwhile_is_a_conflict(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.create(REPO, private=True)
    put = hub._put

    def put_and_meddle(*args: object) -> object:
        repository.add(Commit(files={"config.json": b"{}"}, large=set(), title="theirs"), branch="main")
        return put(*args)

    monkeypatch.setattr(hub, "_put", put_and_meddle)
    with pytest.raises(PushError, match=r"somebody else changed `someone/model` meanwhile \(412\)"):
        push_checkpoint(directory, REPO)
    assert files_on(hub) == {"config.json"}


@pytest.mark.parametrize(
    ("place", "status", "headers", "message"),
    [
        pytest.param("create", 402, {}, r"asks for payment \(402\): the storage of `someone`", id="payment"),
        pytest.param("storage", 413, {}, r"too large for the Hub \(413\); save smaller shards", id="too-large"),
        pytest.param("create", 429, {"Retry-After": "17"}, r"\(429\); wait 17 seconds and push again", id="rate"),
        pytest.param("create", 429, {}, r"\(429\); wait some minutes", id="rate-unstated"),
        pytest.param("storage", 503, {}, "answers 503, also after trying again", id="trouble"),
        pytest.param("create", 418, {}, "the Hub answers 418. The Hub says: made to fail", id="other"),
    ],
)
def test_refusal_of_the_hub_is_one_line_with_a_remedy(
    hub: HubServer, directory: Path, place: str, status: int, headers: dict[str, str], message: str
) -> None:
    for method in ("POST", "PUT"):
        hub.fail(method, place, status=status, headers=headers, times=100)
    with pytest.raises(PushError, match=message) as caught:
        push_checkpoint(directory, REPO)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not hub.repositories or files_on(hub) == set()


def test_missing_token_is_named_before_anything_is_sent(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match=r"no token for the Hub; run `hf auth login` or set HF_TOKEN"):
        push_checkpoint(directory, REPO)
    assert hub.requests == []


def test_invalid_token_is_refused_without_being_shown(hub: HubServer, directory: Path) -> None:
    other = "hf_" + "x" * 34
    with pytest.raises(PushError, match=r"does not accept the token \(401") as caught:
        push_checkpoint(directory, REPO, token=other)
    assert other not in str(caught.value)
    assert not hub.repositories


def test_token_in_what_the_hub_says_is_not_repeated(hub: HubServer, directory: Path) -> None:
    hub.fail("POST", "create", status=418, headers={"X-Error-Message": f"odd token {TOKEN}"})
    with pytest.raises(PushError, match=r"odd token \*\*\*") as caught:
        push_checkpoint(directory, REPO)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_repository_of_another_owner_names_the_missing_right(hub: HubServer, directory: Path, exists: bool) -> None:
    for _ in range(exists):
        hub.create("other/model", private=False)
    with pytest.raises(PushError, match=r"may not write to `other/model` \(403\).*--create-pr"):
        push_checkpoint(directory, "other/model", private=False)
    assert not hub.paths("PUT")


def test_missing_branch_is_named_with_the_command_that_makes_it(hub: HubServer, directory: Path) -> None:
    hub.create(REPO, private=True)
    with pytest.raises(PushError, match=r"no branch `next` \(404\); create it with `hf repos branch create"):
        push_checkpoint(directory, REPO, revision="next")
    assert not hub.paths("PUT")


@pytest.mark.parametrize("options", [{"revision": "next"}, {"create_pr": True}], ids=["branch", "pull-request"])
def test_missing_repository_is_not_created_for_a_branch_or_pull_request(
    hub: HubServer, directory: Path, options: dict[str, object]
) -> None:
    with pytest.raises(PushError, match=r"there is no repository `someone/model`.*\(404\)"):
        push_checkpoint(directory, REPO, **options)
    assert not hub.repositories


def test_network_that_is_down_is_reported_at_once(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(PushError, match=f"cannot reach {address} .*nothing was sent; check the network"):
        push_checkpoint(directory, REPO, endpoint=f"http://{address}")
    assert hub.requests == []


def test_offline_mode_is_named(hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_checkpoint(directory, REPO)
    assert hub.requests == []


def test_card_that_the_hub_refuses_is_reported_before_weights_are_sent(hub: HubServer, directory: Path) -> None:
    (directory / "README.md").write_text("---\nlicense: [mit]\n---\n")
    with pytest.raises(PushError, match=r'metadata of README.md, nothing was sent:.*"license" must be a string'):
        push_checkpoint(directory, REPO)
    assert not hub.paths("PUT")


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "some one/model", ""])
def test_repository_name_of_another_form_is_refused(hub: HubServer, directory: Path, repo_id: str) -> None:
    with pytest.raises(PushError, match="write `owner/name`"):
        push_checkpoint(directory, repo_id, dry_run=True)


# Pieces are joined here, so that no scanner takes them for real ones.
LEAKS = {
    "token": ("README.md", "use hf_" + "a1" * 17, "README.md, line 1: a Hugging Face token"),
    "aws": ("README.md", "\n\nAKIA" + "ABCD" * 4, "README.md, line 3: an AWS access key"),
    "github": ("README.md", "ghp_" + "a1" * 18, "README.md, line 1: a GitHub token"),
    "openai": ("config.json", {"a": {"b": ["x", SECRET]}}, r"config.json: `a.b\[1\]`: an API key \(sk-...\)"),
    "private-key": ("LICENSE", "-----BEGIN RSA " + "PRIVATE KEY-----\nabc", "LICENSE, line 1: a private key"),
    "password": ("README.md", "see https://me:" + "word@host/x", "README.md, line 1: an address with a password"),
    "env": ("README.md", "export OPENAI_API_" + "KEY=abcdefghijkl", "README.md, line 1: a secret in a variable"),
    "env-quoted": ("README.md", "WANDB_API_" + "KEY: 'a1b2c3d4e5'", "README.md, line 1: a secret in a variable"),
    "env-token": ("README.md", "MY_SERVICE_TO" + "KEN=abcdefghijk", "README.md, line 1: a secret in a variable"),
    "jwt": ("README.md", ".".join(("eyJhbGciOiJI", "eyJzdWIiOiIx", "c2lnbmF0dXJl")), "README.md, line 1: a JSON web"),
    "query": ("README.md", "https://x.org/a?to" + "ken=abcdefgh12", "README.md, line 1: an address with a token"),
    "signed": ("README.md", "https://x.org/a?b=1&X-Amz-Signature=" + "0a" * 16, "line 1: an address with a token"),
    "short-token": ("README.md", "hf_" + "a1" * 12, "README.md, line 1: a Hugging Face token"),
    "bearer": ("README.md", "Authorization: Bearer " + "a1" * 12, "README.md, line 1: a bearer token"),
    "env-in-json": ("config.json", {"env": {"GITHUB_TOKEN": "word"}}, "config.json: `env.GITHUB_TOKEN`: a secret"),
    "in-picture": ("images/curve.png", "not a picture", "README.md shows images/curve.png, which is no image"),
    "key-name": ("tokenizer_config.json", {"token": "word"}, "tokenizer_config.json: `token`: a secret"),
    "in-vocabulary": ("vocab.json", {SECRET: 0}, "vocab.json, line 1: an API key"),
    "home": ("README.md", "Trained in /home/me/run.", "README.md, line 1: a path of this computer"),
    "windows": ("README.md", r"In C:\Users\me\run.", "README.md, line 1: a path of this computer"),
    "file-url": ("README.md", "file:///data/x", "README.md, line 1: a path of this computer"),
    "base-in-card": ("README.md", "---\nbase_model: /data/x\n---\n", "README.md: `base_model`: a path of this"),
    "value": ("config.json", {"source": "/data/models/x"}, "config.json: `source`: a path of this computer"),
    "windows-value": ("config.json", {"source": "D:\\models\\x"}, "config.json: `source`: a path of this computer"),
    "share": ("config.json", {"source": "\\\\server\\x"}, "config.json: `source`: a path of this computer"),
    "name": ("config.json", {"text_config": {"_name_or_path": "./out"}}, "`text_config._name_or_path`: a directory"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_secret_or_local_path_is_refused_before_anything_is_sent(hub: HubServer, directory: Path, leak: str) -> None:
    name, content, message = LEAKS[leak]
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).write_text(text)
    with pytest.raises(PushError, match=f"nothing was sent.*{message}.*(remove|replace|write)") as caught:
        push_checkpoint(directory, REPO)
    assert not any(secret in str(caught.value) for secret in (SECRET, "a1a1", "ABCD", "word@", ": word", "/me/"))
    assert hub.requests == []


def test_token_in_use_is_found_whatever_it_looks_like(hub: HubServer, directory: Path) -> None:
    hub.tokens["plain"] = ("someone",)
    (directory / "README.md").write_text("with plain text")
    with pytest.raises(PushError, match=r"README\.md, line 1: the token in use"):
        push_checkpoint(directory, REPO, token="plain")
    assert hub.requests == []


def test_local_path_in_the_metadata_of_weights_is_refused(hub: HubServer, directory: Path) -> None:
    write_weights(directory / SHARDS[1], metadata={"source": "/data/models/x"})
    with pytest.raises(PushError, match=rf"{SHARDS[1]}: `metadata\.source`: a path of this computer"):
        push_checkpoint(directory, REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/page and /path/to/model and a/tmp/b",
        "risk-based task-oriented-description-of-2024-data",
        r"{{ 'Q:\nWhat?\nA:\n' }}",
        "hf_hub_download(repo_id) and sk-learn",
        "user:password@ is how it is written",
        'MAX_TOKENS=100000000, API_KEY=<your key>, api_key=environ["KEY"], TOKEN=$HF_TOKEN, api_key=settings.key',
        "IMAGE_TOKEN: str = '<image>' and https://x.org/a?token=<token>&page=12345678",
        "the eyJ prefix, a bearer of news, hf_transfer",
    ],
)
def test_harmless_text_is_pushed(hub: HubServer, directory: Path, text: str) -> None:
    (directory / "README.md").write_text(text)
    write_json(directory / "config.json", {"note": text, "_name_or_path": "someone/base"})
    assert "README.md" in push_checkpoint(directory, REPO, dry_run=True).files


def test_all_findings_are_reported_together(directory: Path) -> None:
    write_json(directory / "config.json", {"a": "/data/x/y", "b": SECRET})
    (directory / "README.md").write_text("/home/me/x")
    with pytest.raises(PushError, match=r"README.md.*`a`.*`b`"):
        push_checkpoint(directory, REPO, dry_run=True)


def cut_shard(directory: Path) -> None:
    (directory / SHARDS[0]).write_bytes((directory / SHARDS[0]).read_bytes()[:-4])


def only_pickles(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"pickle")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut_shard, "weights cannot be pushed: .*truncated", id="truncated"),
        pytest.param(lambda path: (path / SHARDS[0]).unlink(), "weights cannot be pushed: .*lacks", id="lacking"),
        pytest.param(only_pickles, "no weights in safetensors form", id="pickles"),
        pytest.param(lambda path: write_weights(path / "model.safetensors"), "both there, from two saves", id="both"),
        pytest.param(lambda path: (path / "config.json").write_text("{"), "config.json is not valid JSON", id="json"),
        pytest.param(
            lambda path: write_json(path / "config.json", {"auto_map": {"AutoConfig": "custom.Config"}}),
            "config.json: `auto_map` names `custom.py`",
            id="code",
        ),
    ],
)
def test_directory_that_would_not_load_is_refused(directory: Path, damage: object, message: str) -> None:
    damage(directory)
    with pytest.raises(PushError, match=message):
        push_checkpoint(directory, REPO, dry_run=True)


def test_truncated_adapter_is_refused(tmp_path: Path) -> None:
    weights = write_adapter(tmp_path / "adapter", base="someone/base") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(PushError, match=r"weights cannot be pushed: .*truncated"):
        push_checkpoint(tmp_path / "adapter", REPO, dry_run=True)
    weights.unlink()
    with pytest.raises(PushError, match=r"lacks `adapter_model\.safetensors`"):
        push_checkpoint(tmp_path / "adapter", REPO, dry_run=True)


def test_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PushError, match=r"holds no `config\.json`"):
        push_checkpoint(tmp_path, REPO, dry_run=True)
    with pytest.raises(PushError, match="is no directory"):
        push_checkpoint(tmp_path / "missing", REPO, dry_run=True)


@pytest.mark.parametrize("name", ["README.md", "config.json", SHARDS[0], "tokenizer.json", "images/curve.png"])
def test_link_that_leads_out_of_the_directory_is_refused(
    hub: HubServer, directory: Path, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (directory / name).rename(elsewhere)
    (directory / name).symlink_to(elsewhere)
    with pytest.raises(PushError, match=rf"links that lead out of it.*{name}"):
        push_checkpoint(directory, REPO)
    assert hub.requests == []


def test_folder_of_pictures_that_is_a_link_is_refused(hub: HubServer, directory: Path, tmp_path: Path) -> None:
    (directory / "images").rename(tmp_path / "elsewhere")
    (directory / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PushError, match=r"links that lead out of it.*images/curve\.png"):
        push_checkpoint(directory, REPO)
    assert hub.requests == []


def test_links_inside_and_into_the_store_of_the_cache_are_what_they_say(directory: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0"
    blobs.mkdir(parents=True)
    shutil.copytree(directory, snapshot)
    for name in (SHARDS[0], "config.json"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    (snapshot / "LICENSE").symlink_to(snapshot / "README.md")
    assert SHARDS[0] in push_checkpoint(snapshot, REPO, dry_run=True).files


@pytest.mark.parametrize("depth", [5_000, 100_000])
def test_deep_json_is_one_line(directory: Path, depth: int) -> None:
    (directory / "tokenizer.json").write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(PushError, match=r"tokenizer\.json is (not valid JSON|nested too deeply)"):
        push_checkpoint(directory, REPO, dry_run=True)


def test_front_matter_that_is_a_bomb_is_one_line(directory: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    (directory / "README.md").write_text("\n".join(["---", *lines, "---", "# Model"]))
    with pytest.raises(PushError, match="is no valid YAML"):
        push_checkpoint(directory, REPO, dry_run=True)
